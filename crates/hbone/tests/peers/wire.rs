//! What is really on the wire, seen by peers that aren't ours: bytes read by hand, and bare h2.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use hbone::h2::client;
use hbone::h2::server::{Incoming, Server};
use hbone::{H2Config, ResetCode, StreamError};
use http::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::spawn_local;

use super::fixture::{Counted, echo, receive, request, run, send, serve};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

async fn frame(io: &mut DuplexStream) -> Frame {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.expect("a frame");
    let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
    io.read_exact(&mut payload).await.expect("its payload");
    let stream = u32::from_be_bytes(head[5..].try_into().expect("four bytes"));
    Frame { kind: head[3], flags: head[4], stream, payload }
}

/// Writes an empty SETTINGS, so that the other side gets going.
async fn greet(io: &mut DuplexStream) {
    io.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("room for it");
}

fn settings(payload: &[u8]) -> BTreeMap<u16, u32> {
    payload
        .chunks(6)
        .map(|entry| {
            let (name, value) = entry.split_at(2);
            (
                u16::from_be_bytes(name.try_into().expect("two bytes")),
                u32::from_be_bytes(value.try_into().expect("four bytes")),
            )
        })
        .collect()
}

const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;

async fn window_of_the_connection(io: &mut DuplexStream) -> u32 {
    loop {
        let update = frame(io).await;
        if update.kind == 8 && update.stream == 0 {
            return 65_535 + u32::from_be_bytes(update.payload.try_into().expect("four bytes"));
        }
    }
}

#[test]
fn the_clients_settings_are_the_contracts() {
    run(async {
        let (near, mut far) = duplex(64 << 10);
        let (_tunnel, driver) = client::handshake::<_, Bytes>(near, &H2Config::default()).await.expect("our half");
        spawn_local(driver);
        greet(&mut far).await;
        let mut preface = [0; 24];
        far.read_exact(&mut preface).await.expect("a preface");
        assert_eq!(preface, PREFACE);
        let first = frame(&mut far).await;
        assert_eq!((first.kind, first.flags, first.stream), (4, 0, 0));
        let expected = [
            (ENABLE_PUSH, 0),
            (INITIAL_WINDOW_SIZE, 4_194_304),
            (MAX_FRAME_SIZE, 1_048_576),
            (MAX_HEADER_LIST_SIZE, 16_384),
        ];
        assert_eq!(settings(&first.payload), expected.into());
        assert_eq!(window_of_the_connection(&mut far).await, 16_777_216);
    });
}

#[test]
fn the_servers_settings_are_the_contracts() {
    run(async {
        let (near, mut far) = duplex(64 << 10);
        far.write_all(PREFACE).await.expect("room for it");
        greet(&mut far).await;
        let server = Server::<_, Bytes>::handshake(near, &H2Config::default()).await.expect("our half");
        spawn_local(serve(server, echo));
        let first = frame(&mut far).await;
        assert_eq!((first.kind, first.flags, first.stream), (4, 0, 0));
        let expected = [
            (MAX_CONCURRENT_STREAMS, 200),
            (INITIAL_WINDOW_SIZE, 4_194_304),
            (MAX_FRAME_SIZE, 1_048_576),
            (MAX_HEADER_LIST_SIZE, 65_536),
        ];
        assert_eq!(settings(&first.payload), expected.into());
        assert_eq!(window_of_the_connection(&mut far).await, 16_777_216);
    });
}

/// A bare h2 client of our server.
async fn bare_client<Fut>(handle: fn(Incoming<Bytes>) -> Fut) -> ::h2::client::SendRequest<Bytes>
where
    Fut: Future<Output = ()> + 'static,
{
    let (near, far) = duplex(64 << 10);
    let config = H2Config::default();
    let (client, server) = tokio::join!(::h2::client::handshake(near), Server::<_, Bytes>::handshake(far, &config));
    let (requests, connection) = client.expect("client");
    spawn_local(connection);
    spawn_local(serve(server.expect("server"), handle));
    requests
}

#[test]
fn a_connect_has_authority_and_neither_scheme_nor_path() {
    run(async {
        let (near, far) = duplex(64 << 10);
        let config = H2Config::default();
        let (client, server) = tokio::join!(client::handshake::<_, Bytes>(near, &config), ::h2::server::handshake(far));
        let (tunnel, driver) = client.expect("client");
        let mut server = server.expect("server");
        spawn_local(driver);
        let asked = spawn_local(async move { tunnel.open(request("[fd00::1]:80")).await.map(|_| ()) });
        let (request, mut answer) = server.accept().await.expect("one").expect("good");
        assert_eq!(request.method(), Method::CONNECT);
        assert_eq!(request.uri().authority().map(|authority| authority.as_str()), Some("[fd00::1]:80"));
        assert_eq!(request.uri().scheme(), None);
        assert_eq!(request.uri().path_and_query(), None);
        assert!(request.headers().is_empty(), "{:?}", request.headers());
        assert!(!request.body().is_end_stream());
        answer.send_response(Response::new(()), false).expect("alive");
        spawn_local(async move { while server.accept().await.is_some() {} });
        asked.await.expect("asked").expect("200");
    });
}

#[test]
fn a_refusal_is_headers_with_the_end_and_nothing_else() {
    run(async {
        let mut requests = bare_client(|incoming| async { incoming.refuse(401) }).await;
        let mut connect = Request::new(());
        *connect.method_mut() = Method::CONNECT;
        *connect.uri_mut() = "10.0.0.1:80".parse().expect("authority form");
        let (answer, _send) = requests.send_request(connect, false).expect("sent");
        let answer = answer.await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert!(answer.headers().is_empty(), "{:?}", answer.headers());
        assert!(answer.body().is_end_stream());
    });
}

#[test]
fn several_baggage_headers_and_the_clients_network_are_read() {
    run(async {
        let mut requests = bare_client(|incoming| async {
            let baggage = incoming.baggage().expect("two headers");
            assert_eq!((&*baggage.namespace, &*baggage.service_name), ("shop", "cart"));
            assert_eq!(incoming.forwarded_network(), Some("west"));
            assert_eq!(incoming.traceparent(), None, "not text");
            incoming.refuse(503);
        })
        .await;
        let connect = Request::connect("10.0.0.1:80")
            .header("baggage", "k8s.namespace.name=shop")
            .header("baggage", "service.name=cart")
            .header("x-forwarded-network", "west")
            .header("traceparent", &b"\xff"[..])
            .body(())
            .expect("good");
        let (answer, _send) = requests.send_request(connect, false).expect("sent");
        assert_eq!(answer.await.expect("an answer").status(), StatusCode::SERVICE_UNAVAILABLE);
    });
}

async fn judge(incoming: Incoming<Bytes>) {
    match (incoming.is_connect(), incoming.authority()) {
        (false, _) => incoming.refuse(400),
        (true, None) => incoming.refuse(400),
        (true, Some(_)) => echo(incoming).await,
    }
}

#[test]
fn a_request_that_is_no_connect_can_be_seen_and_refused() {
    run(async {
        let mut requests = bare_client(|incoming| async {
            assert_eq!(incoming.method(), "GET");
            judge(incoming).await;
        })
        .await;
        let (answer, _) =
            requests.send_request(Request::get("https://a.b/c").body(()).expect("good"), true).expect("sent");
        assert_eq!(answer.await.expect("an answer").status(), StatusCode::BAD_REQUEST);
    });
}

/// The header block of a request in plain literals.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

#[test]
fn a_request_that_bare_clients_cannot_send_is_survived() {
    run(async {
        type Fields = &'static [(&'static str, &'static str)];
        let rows: [(&str, Fields, u8); 6] = [
            ("no authority", &[(":method", "CONNECT")], 1),
            ("not an authority", &[(":method", "CONNECT"), (":authority", "a b")], 3),
            ("a path", &[(":method", "CONNECT"), (":authority", "a:1"), (":path", "/")], 3),
            ("a scheme", &[(":method", "CONNECT"), (":authority", "a:1"), (":scheme", "https")], 3),
            ("no method", &[(":authority", "a:1")], 3),
            ("a status", &[(":method", "CONNECT"), (":authority", "a:1"), (":status", "200")], 3),
        ];
        let (near, mut far) = duplex(64 << 10);
        far.write_all(PREFACE).await.expect("room for it");
        greet(&mut far).await;
        let server = Server::<_, Bytes>::handshake(near, &H2Config::default()).await.expect("our half");
        spawn_local(serve(server, judge));
        for (at, (row, fields, kind)) in rows.into_iter().enumerate() {
            let stream = u32::try_from(at * 2 + 1).expect("small");
            let block = block(fields);
            let length = u8::try_from(block.len()).expect("short");
            let mut headers = vec![0, 0, length, 1, 0x4];
            headers.extend_from_slice(&stream.to_be_bytes());
            headers.extend_from_slice(&block);
            far.write_all(&headers).await.expect("room for it");
            let answer = loop {
                let frame = frame(&mut far).await;
                if frame.stream == stream {
                    break frame;
                }
                assert_ne!(frame.kind, 7, "{row}: the tunnel must live");
            };
            assert_eq!(answer.kind, kind, "{row}: HEADERS or RST_STREAM");
        }
    });
}

#[test]
fn empty_frames_and_padding_of_a_peer_are_no_data() {
    run(async {
        let (near, far) = duplex(64 << 10);
        let config = H2Config::default();
        let (client, server) = tokio::join!(client::handshake::<_, Bytes>(near, &config), ::h2::server::handshake(far));
        let (tunnel, driver) = client.expect("client");
        let mut server = server.expect("server");
        spawn_local(driver);
        spawn_local(async move {
            let (_request, mut answer) = server.accept().await.expect("one").expect("good");
            let mut send = answer.send_response(Response::new(()), false).expect("alive");
            for _ in 0..50 {
                send.send_data(Bytes::new(), false).expect("alive");
            }
            send.send_data(Bytes::from_static(b"x"), false).expect("alive");
            send.send_data(Bytes::new(), true).expect("alive");
            while server.accept().await.is_some() {}
        });
        let (_send_half, mut receive_half) = tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
        assert_eq!(receive_half.receive().await, Ok(Some(Bytes::from_static(b"x"))));
        assert_eq!(receive_half.receive().await, Ok(None));
        assert_eq!(receive_half.receive().await, Ok(None), "and stays at its end");
    });
}

#[test]
fn small_frames_fill_a_stalled_readers_window_without_ending_the_tunnel() {
    const MESSAGE: usize = 32;
    const WINDOW: usize = 4 << 20;
    run(async {
        let (near, far) = duplex(1 << 20);
        let arrived = Rc::new(Cell::new(0));
        let config = H2Config { send_buffer_server: 2 * WINDOW, ..H2Config::default() };
        let (client, server) = tokio::join!(
            client::handshake::<_, Bytes>(Counted::new(near, &arrived), &config),
            Server::<_, Bytes>::handshake(far, &config)
        );
        let (tunnel, driver) = client.expect("client");
        spawn_local(driver);
        spawn_local(serve(server.expect("server"), |incoming: Incoming<Bytes>| async {
            let (mut send_half, _receive_half) = incoming.accept(None).expect("client").split();
            for _ in 0..WINDOW / MESSAGE {
                send(&mut send_half, Bytes::from_static(&[1; MESSAGE])).await.expect("within the window");
            }
            send_half.finish().expect("finished");
        }));
        let (_send_half, mut receive_half) = tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
        // Each message is a frame of its own, with its head.
        while arrived.get() < WINDOW / MESSAGE * (9 + MESSAGE) {
            assert!(tunnel.is_open(), "after {} bytes", arrived.get());
            tokio::task::yield_now().await;
        }
        assert_eq!(receive(&mut receive_half).await.expect("clean").len(), WINDOW);
    });
}

#[test]
fn a_client_that_cancels_all_it_opened_at_once_keeps_its_tunnel() {
    run(async {
        let mut requests = bare_client(echo).await;
        let connect = || {
            let mut connect = Request::new(());
            *connect.method_mut() = Method::CONNECT;
            *connect.uri_mut() = "10.0.0.1:80".parse().expect("authority form");
            connect
        };
        for _ in 0..5 {
            let opened: Vec<_> = (0..90).map(|_| requests.send_request(connect(), false).expect("sent")).collect();
            drop(opened);
            tokio::task::yield_now().await;
        }
        let (answer, _send) = requests.send_request(connect(), false).expect("sent");
        assert_eq!(answer.await.expect("an answer").status(), StatusCode::OK);
    });
}

#[test]
fn the_codes_on_the_wire_are_the_rfcs() {
    run(async {
        let rows = [(ResetCode::CONNECT_ERROR, 10), (ResetCode::CANCEL, 8), (ResetCode::NO_ERROR, 0)];
        for (code, number) in rows {
            assert_eq!(code, ResetCode(number));
            let (near, far) = duplex(64 << 10);
            let config = H2Config::default();
            let (client, server) =
                tokio::join!(client::handshake::<_, Bytes>(near, &config), ::h2::server::handshake(far));
            let (tunnel, driver) = client.expect("client");
            let mut server = server.expect("server");
            spawn_local(driver);
            let opened = spawn_local(async move { tunnel.open(request("10.0.0.1:80")).await });
            let (request, mut answer) = server.accept().await.expect("one").expect("good");
            let _send = answer.send_response(Response::new(()), false).expect("alive");
            spawn_local(async move { while server.accept().await.is_some() {} });
            let (mut send_half, mut receive_half) = opened.await.expect("opened").expect("200").split();
            send_half.reset(code);
            let mut body = request.into_body();
            let error = body.data().await.expect("a reset").expect_err("a reset");
            assert_eq!(error.reason().map(u32::from), Some(number));
            assert_eq!(receive_half.receive().await, Err(StreamError::Reset(code)), "our own");
        }
    });
}
