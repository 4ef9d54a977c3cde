//! The byte stream below a connection: a socket, plain or with TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::server::conninfo::TcpSettings;

/// A socket to a server.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Connects to an address with libpq's socket options.
    pub(super) async fn open_tcp(address: SocketAddr, settings: &TcpSettings) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, settings.keepalives)?;
        if settings.keepalives {
            if let Some(idle) = settings.idle {
                sockopt::set_tcp_keepidle(&stream, idle)?;
            }
            if let Some(interval) = settings.interval {
                sockopt::set_tcp_keepintvl(&stream, interval)?;
            }
            if let Some(count) = settings.count {
                sockopt::set_tcp_keepcnt(&stream, count)?;
            }
        }
        if let Some(millis) = settings.user_timeout_millis {
            sockopt::set_tcp_user_timeout(&stream, millis)?;
        }
        Ok(stream)
    }

    /// The address the server sees, unless something between translates it; none for a Unix socket.
    pub(super) fn local_address(&self) -> Option<std::net::IpAddr> {
        let socket = match self {
            Self::Unix(_) => return None,
            Self::Tcp(socket) => socket,
            Self::Tls(tls) => tls.get_ref().0,
        };
        Some(socket.local_addr().ok()?.ip())
    }

    /// The server's certificate, in DER.
    pub(super) fn server_certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(tls) => tls.get_ref().1.peer_certificates()?.first().map(AsRef::as_ref),
            _ => None,
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
