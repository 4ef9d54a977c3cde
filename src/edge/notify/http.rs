//! One POST to a URL that is a secret. No proxy is used and no redirect followed.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::SecretUrl;
use crate::error::{Error, Result};

/// Posts a body, and takes any answer that means success for one.
///
/// # Errors
/// `Unavailable` where it may work later, `Invalid` where not. None has a part of the URL.
pub(super) async fn post(url: &SecretUrl, kind: &str, body: String) -> Result<()> {
    let (host, port) = url.host_and_port();
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|error| Error::unavailable(format!("connect: {}", error.kind())))?;
    if !url.is_tls() {
        return exchange(stream, url, kind, body).await;
    }
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Error::invalid("its host is neither a name nor an address"))?;
    let stream = TlsConnector::from(tls()?).connect(name, stream).await;
    // The error itself may name the host.
    let stream = stream.map_err(|_| {
        Error::unavailable("the TLS handshake failed: the certificate is not trusted, or is another host's")
    })?;
    exchange(stream, url, kind, body).await
}

fn tls() -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    // What cannot be read is left out, as everywhere.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::defect("set up TLS", error))?;
    Ok(Arc::new(
        builder.with_root_certificates(roots).with_no_client_auth(),
    ))
}

async fn exchange<S>(stream: S, url: &SecretUrl, kind: &str, body: String) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| {
        let why = if error.is_timeout() {
            "no answer"
        } else {
            "the connection broke off"
        };
        Error::unavailable(why)
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let running = tokio::spawn(connection);
    let request = Request::post(url.path())
        .header(HOST, url.authority())
        .header(USER_AGENT, concat!("walship/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, kind)
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| Error::invalid("it is not a URL that can be asked for"))?;
    let answer = sender.send_request(request).await.map_err(failed);
    running.abort();
    let status = answer?.status();
    if status.is_success() {
        return Ok(());
    }
    let text = format!("the server answered with {}", status.as_u16());
    // A server that is too busy, or broken, may be well again soon.
    Err(
        if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) {
            Error::unavailable(text)
        } else {
            Error::invalid(text)
        },
    )
}
