package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
)

// The largest order that is read: some thousands of objects.
const orderBytesMax = 16 << 20

// An order that is wrong, not a peer that failed: answered with 400.
type badOrder struct{ error }

func refuse(format string, arguments ...any) error {
	return badOrder{fmt.Errorf(format, arguments...)}
}

// One order: its body in, what is answered as JSON out.
type order func(request *http.Request, body []byte) (any, error)

// serveControl answers orders at a Unix socket, by "METHOD /path", until the process ends. The driver knows by the one
// line it prints that orders are taken from now on.
func serveControl(socket string, orders map[string]order) error {
	if socket == "" {
		return errors.New("-control is missing: the Unix socket at which this peer is driven")
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	for pattern, order := range orders {
		mux.HandleFunc(pattern, func(writer http.ResponseWriter, request *http.Request) {
			body, err := io.ReadAll(http.MaxBytesReader(writer, request.Body, orderBytesMax))
			var answer any
			if err == nil {
				answer, err = order(request, body)
			}
			reply(writer, answer, err)
		})
	}
	fmt.Fprintln(os.Stdout, "orders are taken at", socket)
	return http.Serve(listener, mux)
}

func reply(writer http.ResponseWriter, answer any, err error) {
	text := []byte("{}")
	if err == nil && answer != nil {
		text, err = json.Marshal(answer)
	}
	status := http.StatusOK
	if err != nil {
		status = http.StatusInternalServerError
		if errors.As(err, &badOrder{}) {
			status = http.StatusBadRequest
		}
		text = []byte(err.Error())
	}
	// One write of a known length, so that the driver needs no reader of chunks.
	writer.Header().Set("Content-Length", fmt.Sprint(len(text)))
	writer.WriteHeader(status)
	_, _ = writer.Write(text)
}

// parse reads an order's JSON; a name it doesn't know is an error rather than a wish that is ignored.
func parse(body []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return refuse("the order is no JSON of its kind: %v", err)
	}
	return nil
}
