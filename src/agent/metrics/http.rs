//! The agent's port: read only, and for monitoring alone.
//!
//! A page of a stranger's that a browser on this machine opens could reach it by a name that leads to this address; so
//! only names that are ours are answered. Whoever connects and says nothing is hung up on.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HOST, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use super::Metrics;
use crate::edge::exposition::Format;

/// Connections at the same time. With one more the oldest ends, so that idle ones keep nobody out.
const CONNECTIONS: usize = 128;
/// In which a request must have arrived.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// A request with its headers. Hyper needs 8 KiB.
const REQUEST_BYTES: usize = 16 << 10;
/// Until the address is tried again.
const PAUSE: Duration = Duration::from_secs(10);

/// Answers for ever. Archiving does not depend on it: where the address is taken, it waits.
pub(super) async fn serve(address: SocketAddr, metrics: Arc<Metrics>) -> Infallible {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!("listen on {address} for metrics: {error}; see metrics.listen");
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    let mut connections = VecDeque::<AbortHandle>::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Too many open files, say.
            Err(error) => {
                tracing::warn!("accept a connection for metrics: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let metrics = Arc::clone(&metrics);
        let answering = service_fn(move |request: Request<Incoming>| {
            let metrics = Arc::clone(&metrics);
            async move { Ok::<_, Infallible>(answer(&metrics, request.into_parts().0).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_TIME)
            .max_buf_size(REQUEST_BYTES)
            .serve_connection(TokioIo::new(stream), answering);
        // A client that breaks off is its own affair.
        let connection = tokio::spawn(async move { drop(connection.await) });
        connections.push_back(connection.abort_handle());
    }
}

async fn answer(metrics: &Metrics, request: Parts) -> Response<Full<Bytes>> {
    let header = |name| request.headers.get(name).and_then(|value| value.to_str().ok());
    if !header(HOST).is_some_and(|host| is_ours(host, metrics.hosts())) {
        let text = "this name is not known here; use an address, localhost, or name it in metrics.hosts\n";
        return plain(StatusCode::MISDIRECTED_REQUEST, text);
    }
    if request.method != Method::GET && request.method != Method::HEAD {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
        let methods = HeaderValue::from_static("GET, HEAD");
        refused.headers_mut().insert(ALLOW, methods);
        return refused;
    }
    match request.uri.path() {
        "/metrics" => {
            let format = Format::asked_for(header(ACCEPT).unwrap_or_default());
            match metrics.scrape(format).await {
                Ok(text) => response(StatusCode::OK, format.content_type(), text),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        "/healthz" => plain(StatusCode::OK, "the agent runs\n"),
        "/readyz" => match metrics.readiness() {
            Ok(()) => plain(StatusCode::OK, "the archive was reached\n"),
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        _ => plain(
            StatusCode::NOT_FOUND,
            "there are /metrics, /healthz and /readyz\n",
        ),
    }
}

/// Whether a `Host` (RFC 9110, section 7.2) is an address or a name of this machine's.
fn is_ours(host: &str, hosts: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let is_known = hosts.iter().any(|known| known.eq_ignore_ascii_case(name));
    is_known || name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

fn plain(status: StatusCode, text: impl Into<String>) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", text.into())
}

fn response(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_known_names_are_answered() {
        let hosts = ["db1.example".to_owned()];
        for host in [
            "127.0.0.1:9987",
            "localhost",
            "LOCALHOST:9987",
            "[::1]:9987",
            "10.0.0.1",
            "db1.example:9987",
        ] {
            assert!(is_ours(host, &hosts), "{host}");
        }
        for host in [
            "",
            "evil.example:9987",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "a b",
        ] {
            assert!(!is_ours(host, &hosts), "{host}");
        }
    }
}
