//! Asks a running daemon for its page. Whatever answers may be anything: its time and its bytes are bounded.

use std::{io, net::SocketAddr, pin::pin, time::Duration};

use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::{PATH, Page};

/// For everything together: a daemon takes half a second when a core is silent.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest page: about 100 bytes for each core and some texts.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(
        "no daemon answers at {address}: {cause}; is coretunnel running, is this its network namespace (try kubectl exec \
         into its pod, or nsenter -t PID -n), and was it started with another --admin-addr?"
    )]
    NoDaemon { address: SocketAddr, cause: io::Error },
    #[error(
        "{address} took the connection and did not answer within {} s: the daemon's control thread is stuck or starved \
         of CPU; its log and its readiness port may tell more",
        PATIENCE.as_secs()
    )]
    Silent { address: SocketAddr },
    #[error("what answers at {address} is no coretunnel daemon, or one of another version: {cause}")]
    Foreign { address: SocketAddr, cause: String },
}

/// The page of the daemon at `address`.
///
/// # Errors
/// [`AskError`], each with the likely cause.
pub(crate) async fn page(address: SocketAddr) -> Result<Page, AskError> {
    timeout(PATIENCE, converse(address)).await.map_err(|_| AskError::Silent { address })?
}

async fn converse(address: SocketAddr) -> Result<Page, AskError> {
    let foreign = |cause: String| AskError::Foreign { address, cause };
    let stream = TcpStream::connect(address).await.map_err(|cause| AskError::NoDaemon { address, cause })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| foreign(error.to_string()))?;
    let request = Request::get(PATH).header(header::HOST, address.to_string()).body(Empty::<Bytes>::new());
    let answering = async {
        let response = sender.send_request(request.expect("a request of constants")).await;
        let response = response.map_err(|error| foreign(error.to_string()))?;
        if response.status() != StatusCode::OK {
            return Err(foreign(format!("it answers GET {PATH} with {}", response.status())));
        }
        let body = Limited::new(response.into_body(), PAGE_BYTES_MAX).collect().await.map_err(|error| {
            let too_long = error.is::<LengthLimitError>();
            foreign(if too_long {
                format!("its page is longer than {PAGE_BYTES_MAX} bytes")
            } else {
                error.to_string()
            })
        })?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| foreign(format!("its page cannot be read: {error}")))
    };
    let mut answering = pin!(answering);
    tokio::select! {
        page = answering.as_mut() => page,
        // What came before its end is there all the same; if nothing did, who waits for it is told.
        _ended = connection => answering.await,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// What is said of a server that answers the request with these bytes and hangs up, or waits when there are none.
    async fn said_of(answer: Vec<u8>) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback");
        let address = listener.local_addr().expect("it is bound");
        let serving = async {
            let (mut stream, _) = listener.accept().await.expect("somebody comes");
            let mut request = [0; 512];
            let _read = stream.read(&mut request).await;
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
            // Who asks may have had enough of it before its end.
            let _sent = stream.write_all(&answer).await;
            drop(stream);
            std::future::pending().await
        };
        tokio::select! {
            page = page(address) => page.expect_err("no page").to_string(),
            () = serving => unreachable!("it waits"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_answers_instead_of_a_daemon_is_told_with_a_cure() {
        let long = format!("HTTP/1.1 200 OK\r\n\r\n\"{}\"", "x".repeat(PAGE_BYTES_MAX));
        for (answer, said) in [
            ("SSH-2.0-x\r\n", "is no coretunnel daemon"),
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "it answers GET /status with 404"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "its page cannot be read: missing field"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "is no coretunnel daemon"),
            (&long, "its page is longer than 1048576 bytes"),
            ("", "did not answer within 5 s"),
        ] {
            let error = said_of(answer.as_bytes().to_vec()).await;
            assert!(error.contains(said), "{:?}: {error}", &answer[..20.min(answer.len())]);
        }
    }

    #[tokio::test]
    async fn where_nobody_listens_the_cure_is_told() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback");
        let address = listener.local_addr().expect("it is bound");
        drop(listener);
        let error = page(address).await.expect_err("nobody").to_string();
        for part in [&address.to_string(), "refused", "network namespace", "--admin-addr"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
