package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	securityapi "istio.io/api/security/v1alpha1"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/pki/ca"
	"istio.io/istio/security/pkg/pki/util"
)

// What istiod's own self-signed CA has.
const (
	rootTTL      = 10 * 365 * 24 * time.Hour
	leafTTL      = 24 * time.Hour
	leafTTLMax   = 90 * 24 * time.Hour
	rsaKeyBits   = 2048
	organization = "cluster.local"
)

// The names by which a daemon may reach the one port.
var serverNames = []string{"istiod.istio-system.svc", "localhost"}

// authority is istio's CA with a root that can be exchanged, and faults on demand.
type authority struct {
	*ca.IstioCA
	state string

	mu      sync.Mutex
	signers []signer
	server  tls.Certificate
	fault   fault
	ttl     time.Duration
	calls   []call
}

type signer struct{ certificate, key []byte }

// fault is what becomes of requests instead of an answer.
type fault struct {
	// A code of gRPC's, or "" for none.
	Code string `json:"code"`
	// What it says.
	Message string `json:"message"`
}

// call is one CreateCertificate, as it was answered.
type call struct {
	Identity string    `json:"identity"`
	Code     string    `json:"code"`
	Seconds  int64     `json:"seconds"`
	At       time.Time `json:"at"`
}

// The longest record of calls, the oldest of which are forgotten.
const callsMax = 10_000

// newAuthority has the root that was signing last in this state directory, or one of its own.
func newAuthority(state string) (*authority, error) {
	options, err := ca.NewSelfSignedDebugIstioCAOptions("", rootTTL, leafTTL, leafTTLMax, organization, rsaKeyBits)
	if err != nil {
		return nil, err
	}
	issuer, err := ca.NewIstioCA(options)
	if err != nil {
		return nil, err
	}
	certificate, key, _, _ := issuer.GetCAKeyCertBundle().GetAllPem()
	a := &authority{IstioCA: issuer, state: state}
	before, err := os.ReadFile(a.signerFile())
	switch {
	case err == nil:
		// The key is behind the certificate in one file, so that a kill between two writes can't part them.
		certificate, key = splitPem(before)
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	a.signers = []signer{{certificate, key}}
	return a, a.install(a.signers[0])
}

func (a *authority) signerFile() string { return filepath.Join(a.state, "signer.pem") }

// splitPem parts a certificate from the key behind it.
func splitPem(both []byte) (certificate, key []byte) {
	_, key = pem.Decode(both)
	return both[:len(both)-len(key)], key
}

// rotate is one step of exchanging the root, as an operator does it: "trust" makes a new root known beside the old,
// "sign" signs by the newest, "forget" distrusts all others.
func (a *authority) rotate(step string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	signing := a.signers[0]
	switch step {
	case "trust":
		certificate, key, err := util.GenCertKeyFromOptions(util.CertOptions{
			TTL: rootTTL, Org: organization, IsCA: true, IsSelfSigned: true, RSAKeySize: rsaKeyBits, IsDualUse: true,
		})
		if err != nil {
			return err
		}
		a.signers = append(a.signers, signer{certificate, key})
	case "sign":
		signing = a.signers[len(a.signers)-1]
	case "forget":
		a.signers = a.signers[len(a.signers)-1:]
		signing = a.signers[0]
	default:
		return refuse("%q is no step of a rotation: trust, sign, forget", step)
	}
	return a.install(signing)
}

// install makes signing sign, all signers trusted, and the server's own certificate one of the signing root's.
func (a *authority) install(signing signer) error {
	var roots []byte
	for _, signer := range a.signers {
		roots = append(roots, signer.certificate...)
	}
	bundle := a.GetCAKeyCertBundle()
	if err := bundle.VerifyAndSetAll(signing.certificate, signing.key, nil, roots, nil); err != nil {
		return err
	}
	certificate, key, err := a.GenKeyCert(serverNames, leafTTL, false)
	if err != nil {
		return err
	}
	if a.server, err = tls.X509KeyPair(certificate, key); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(a.state, "root.pem"), roots, 0o644); err != nil {
		return err
	}
	return os.WriteFile(a.signerFile(), append(bytes.Clone(signing.certificate), signing.key...), 0o600)
}

func (a *authority) tls() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			return &a.server, nil
		},
	}
}

// intercept stands before the CA's service: it records each call, answers in its place where a fault is set, and shortens
// what is asked for, since a CA may issue for less than was asked.
func (a *authority) intercept(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	csr, ok := request.(*securityapi.IstioCertificateRequest)
	if !ok {
		return next(ctx, request)
	}
	identity := csr.GetMetadata().GetFields()[security.ImpersonatedIdentity].GetStringValue()
	a.mu.Lock()
	fault, ttl := a.fault, a.ttl
	a.mu.Unlock()
	if ttl != 0 && csr.ValidityDuration > int64(ttl.Seconds()) {
		csr.ValidityDuration = int64(ttl.Seconds())
	}
	answer, err := any(nil), error(nil)
	if fault.Code != "" {
		code, parseErr := faultCode(fault.Code)
		if parseErr != nil {
			return nil, parseErr
		}
		err = status.Error(code, fault.Message)
	} else {
		answer, err = next(ctx, request)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.calls) == callsMax {
		a.calls = a.calls[1:]
	}
	a.calls = append(a.calls, call{identity, status.Code(err).String(), csr.ValidityDuration, time.Now()})
	return answer, err
}

func faultCode(name string) (codes.Code, error) {
	for code := codes.OK; code <= codes.Unauthenticated; code++ {
		if code.String() == name {
			return code, nil
		}
	}
	return codes.OK, refuse("%q is no code of gRPC's: for instance Unavailable", name)
}

// fail answers every request with wanted from now on; one without a code ends that.
func (a *authority) fail(wanted fault) error {
	if wanted.Code != "" {
		if _, err := faultCode(wanted.Code); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fault = wanted
	return nil
}

// shorten issues for at most ttl from now on; 0 for as long as is asked for.
func (a *authority) shorten(ttl time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ttl = ttl
}

func (a *authority) record() []call {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]call{}, a.calls...)
}
