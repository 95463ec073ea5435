//! Syslog, RFC 5424: by UDP (RFC 5426), TCP with octet counting (RFC 6587), TLS (RFC 5425) or a unix socket.
//!
//! Syslog never answers. By a stream, records count as delivered once the receiver's kernel has acknowledged every byte
//! of them; by datagrams once they are sent.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket, UnixDatagram, UnixStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::place::{Remote, Syslog as Place};
use super::{Failure, Outlet, Parcel, tls};
use crate::shape::{Record, Severity};

/// How long a connection, a write and its acknowledgement may take.
const WITHIN: Duration = Duration::from_secs(10);
/// How often the send queue is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Facility `log audit`.
const FACILITY: u8 = 13;

/// The receiver, and the connection to it.
pub struct Syslog {
    place: Place,
    connection: Option<Connection>,
}

enum Connection {
    Udp(UdpSocket),
    Datagram(UnixDatagram),
    Stream {
        stream: Box<dyn Duplex>,
        /// Of the socket below.
        socket: RawFd,
        counted: bool,
    },
}

trait Duplex: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

impl Syslog {
    /// Connects when there is something to deliver.
    pub fn new(place: Place) -> Self {
        Self {
            place,
            connection: None,
        }
    }

    async fn send(&mut self, parcels: &[Parcel]) -> io::Result<()> {
        if let Some(connection) = &mut self.connection
            && connection.has_ended().await
        {
            self.connection = None;
        }
        if self.connection.is_none() {
            self.connection = Some(connect(&self.place).await?);
        }
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        connection.send(parcels).await
    }
}

impl Outlet for Syslog {
    async fn deliver(&mut self, parcels: &[Parcel]) -> Result<(), Failure> {
        let result = match timeout(WITHIN, self.send(parcels)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
        };
        result.map_err(|error| {
            self.connection = None;
            Failure::new(format_args!("{:?}: {error}", self.place))
        })
    }
}

async fn connect(place: &Place) -> io::Result<Connection> {
    match place {
        Place::Udp(to) => {
            let mut last = io::Error::from(io::ErrorKind::NotFound);
            for address in tokio::net::lookup_host(to).await? {
                let any = if address.is_ipv4() {
                    "0.0.0.0:0"
                } else {
                    "[::]:0"
                };
                let socket = UdpSocket::bind(any).await?;
                match socket.connect(address).await {
                    Ok(()) => return Ok(Connection::Udp(socket)),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
        Place::Unix(path) => unix(path).await,
        Place::Tcp(remote) => tcp(remote).await,
    }
}

/// `/dev/log` takes datagrams; other programs' sockets may be streams.
async fn unix(path: &Path) -> io::Result<Connection> {
    let datagram = UnixDatagram::unbound()?;
    if datagram.connect(path).is_ok() {
        return Ok(Connection::Datagram(datagram));
    }
    let stream = UnixStream::connect(path).await?;
    let socket = stream.as_raw_fd();
    Ok(Connection::Stream {
        stream: Box::new(stream),
        socket,
        counted: false,
    })
}

async fn tcp(remote: &Remote) -> io::Result<Connection> {
    let host = remote.url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let port = remote
        .url
        .port()
        .unwrap_or(if remote.tls { 6514 } else { 601 });
    let stream = TcpStream::connect((bare, port)).await?;
    let socket = stream.as_raw_fd();
    let stream: Box<dyn Duplex> = if remote.tls {
        let config = tls::config(remote.ca.as_deref()).map_err(io::Error::other)?;
        let name = ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
        Box::new(
            TlsConnector::from(Arc::clone(&config))
                .connect(name, stream)
                .await?,
        )
    } else {
        Box::new(stream)
    };
    Ok(Connection::Stream {
        stream,
        socket,
        counted: true,
    })
}

impl Connection {
    async fn send(&mut self, parcels: &[Parcel]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => {
                for parcel in parcels {
                    socket.send(message(parcel).as_bytes()).await?;
                }
            }
            Self::Datagram(socket) => {
                for parcel in parcels {
                    socket.send(message(parcel).as_bytes()).await?;
                }
            }
            Self::Stream {
                stream,
                socket,
                counted,
            } => {
                let mut text = String::new();
                for message in parcels.iter().map(message) {
                    match counted {
                        true => text.push_str(&format!("{} {message}", message.len())),
                        false => text.push_str(&format!("{message}\n")),
                    }
                }
                stream.write_all(text.as_bytes()).await?;
                stream.flush().await?;
                acknowledged(*socket).await?;
                if self.has_ended().await {
                    return Err(io::Error::from(io::ErrorKind::ConnectionReset));
                }
            }
        }
        Ok(())
    }

    /// Whether the receiver has closed a stream: what is written then goes nowhere.
    async fn has_ended(&mut self) -> bool {
        let Self::Stream { stream, .. } = self else {
            return false;
        };
        let mut byte = [0];
        // A receiver that has something to say is alive.
        let read = timeout(Duration::ZERO, stream.read(&mut byte)).await;
        matches!(read, Ok(Ok(0) | Err(_)))
    }
}

/// Returns once the other side's kernel has all that was written.
async fn acknowledged(socket: RawFd) -> io::Result<()> {
    let deadline = Instant::now() + WITHIN;
    while queued(socket)? > 0 {
        if Instant::now() > deadline {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Bytes in the send queue that are not acknowledged.
fn queued(socket: RawFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the connection owns the socket; SIOCOUTQ (TIOCOUTQ is the same number) stores one int.
    let result = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut bytes) };
    nix::errno::Errno::result(result)?;
    Ok(u32::try_from(bytes).unwrap_or(0))
}

/// A record as a message.
fn message(parcel: &Parcel) -> String {
    let record = Record(&parcel.record);
    let level = match record.severity() {
        Severity::Critical => 2,
        Severity::High => 3,
        Severity::Medium => 4,
        Severity::Low => 5,
        Severity::Informational => 6,
    };
    let priority = FACILITY * 8 + level;
    // Six digits are all that is allowed.
    let time = record.time();
    let time = format!("{time:.6}");
    let host = name(&parcel.key.node, 255);
    let kind = name(record.kind(), 32);
    let sequence = parcel.key.sequence.clamp(1, 2_147_483_647);
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "<{priority}>1 {time} {host} enforcer {} {kind} [meta sequenceId=\"{sequence}\"][origin software=\"enforcer\" swVersion=\"{version}\"] {}",
        std::process::id(),
        parcel.line
    )
}

/// A header field: printable ASCII without spaces.
fn name(text: &str, most: usize) -> String {
    let good = text.chars().filter(char::is_ascii_graphic).take(most);
    let name: String = good.collect();
    if name.is_empty() {
        "-".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::shape::Shape;

    #[test]
    fn a_message_has_the_fields_of_rfc_5424() {
        let record = json!({"time": "2026-11-26T09:14:03.120417233Z", "node": "n 1", "epoch": "e", "sequence": 7,
            "kind": "read", "verdict": "deny", "action": {"taken": "block"}});
        let parcel = Parcel::new(record.to_string().as_bytes(), Shape::Native).expect("a record");
        let message = message(&parcel);
        let expected = "<107>1 2026-11-26T09:14:03.120417Z n1 enforcer ";
        assert!(message.starts_with(expected), "{message}");
        assert!(
            message.contains(" read [meta sequenceId=\"7\"][origin "),
            "{message}"
        );
        assert!(message.ends_with(&format!("] {record}")), "{message}");
    }
}
