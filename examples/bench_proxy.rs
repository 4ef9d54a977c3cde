//! Stands before the S3 server of `scripts/bench` and makes it look further away: TLS for who speaks it, and a
//! round trip added to each request.
//!
//! ```text
//! bench_proxy UPSTREAM_PORT DELAY_MILLISECONDS CERTIFICATE KEY
//! ```
//! Prints its port, the same for TLS and plain HTTP, and serves until its standard input closes. The
//! first byte of each response waits; everything else passes at full speed, as on a long, wide line.
//! It knows nothing of HTTP but that question and answer take turns.

#![allow(clippy::print_stdout)]

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const PIECE_BYTES: usize = 256 << 10;
/// First byte of a TLS connection: a handshake record (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [upstream, delay, certificate, key] = arguments.as_slice() else {
        return Err("usage: bench_proxy UPSTREAM_PORT DELAY_MILLISECONDS CERTIFICATE KEY".into());
    };
    let (upstream, delay) = (upstream.parse()?, Duration::from_millis(delay.parse()?));
    let tls = acceptor(Path::new(certificate), Path::new(key))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            // A client that breaks off is no fault of anyone's.
            tokio::spawn(serve(client, upstream, delay, tls.clone()));
        }
    });
    tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink())).await??;
    Ok(())
}

fn acceptor(certificate: &Path, key: &Path) -> Outcome<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(client: TcpStream, upstream: u16, delay: Duration, tls: TlsAcceptor) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut first = [0];
    client.peek(&mut first).await?;
    let server = TcpStream::connect(("127.0.0.1", upstream)).await?;
    server.set_nodelay(true)?;
    if first == [TLS_HANDSHAKE] {
        relay(tls.accept(client).await?, server, delay).await
    } else {
        relay(client, server, delay).await
    }
}

async fn relay(client: impl AsyncRead + AsyncWrite, server: TcpStream, delay: Duration) -> io::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let asked = AtomicBool::new(false);
    let questions = async {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let length = from_client.read(&mut piece).await?;
            if length == 0 {
                return to_server.shutdown().await;
            }
            asked.store(true, Ordering::Relaxed);
            to_server
                .write_all(piece.get(..length).unwrap_or_default())
                .await?;
        }
    };
    let answers = async {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let length = from_server.read(&mut piece).await?;
            if length == 0 {
                return to_client.shutdown().await;
            }
            if asked.swap(false, Ordering::Relaxed) {
                tokio::time::sleep(delay).await;
            }
            to_client
                .write_all(piece.get(..length).unwrap_or_default())
                .await?;
            to_client.flush().await?;
        }
    };
    tokio::try_join!(questions, answers).map(drop)
}
