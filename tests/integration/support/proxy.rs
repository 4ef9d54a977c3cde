//! A TCP proxy between walship and an S3 server that fails on demand and counts requests.
//!
//! It reads HTTP/1.1 well enough to tell requests and responses apart on a connection that is kept
//! alive, so that a fault hits one request. Bytes are passed on as they came: signatures stay valid,
//! since the `Host` header is the client's.

use std::collections::{BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Pass,
    /// The connection is closed at once; a new one right after it was accepted.
    Refuse,
    /// The request is read and never answered; later ones on the same connection neither.
    BlackHole,
    /// The request is passed on and the connection closed after this many bytes of the response.
    CutAfter(u64),
    /// The request is passed on and the connection closed in the middle of the response's body.
    CutBody,
    /// The request is passed on after this time.
    Delay(Duration),
    /// The request is passed on and done, its response swallowed and the connection closed: the
    /// client cannot know the outcome.
    DropResponse,
    /// The request is passed on, and its response says a time that is so many seconds off.
    Date(i64),
    /// The request is passed on, and its response has no length and ends in its middle: where the connection is closed.
    CutUnnoticed,
    /// The request is passed on, and a bit of this byte of the response's body is another one.
    Flip(usize),
    /// The request is not passed on but answered with this text.
    AnswerWith(&'static str),
    /// The request is not passed on but answered with this status and no body.
    Answer(u16),
}

/// A request that came through, faults or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    /// Its headers as sent, a line each.
    pub head: String,
}

impl Request {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

/// A request that waits in the proxy; released when this is dropped.
pub struct Held {
    came: Receiver<()>,
    _release: Sender<()>,
}

impl Held {
    /// Waits until the request is there.
    #[track_caller]
    pub fn wait(&self) {
        self.came
            .recv_timeout(Duration::from_mins(2))
            .expect("the request that is to be held never came");
    }
}

/// What the proxy has of a [`Held`].
struct Hold {
    method: String,
    target: String,
    came: Sender<()>,
    release: Receiver<()>,
}

#[derive(Default)]
struct State {
    lasting: Option<Fault>,
    /// Each for the next request of its method, in this order.
    once: VecDeque<(String, Fault)>,
    /// Each for the next request of its method whose target contains this text.
    once_at: Vec<(String, String, Fault)>,
    /// For the first request of this method to each target.
    first: Option<(String, Fault)>,
    seen: BTreeSet<String>,
    holds: Vec<Hold>,
    requests: Vec<Request>,
    connections: Vec<TcpStream>,
    accepted: usize,
    closing: bool,
}

/// Listens on a loopback port of its own until dropped.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// In front of a server such as `http://127.0.0.1:9000`.
    pub fn start(endpoint: &str) -> Self {
        let upstream: SocketAddr = endpoint
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .parse()
            .unwrap_or_else(|e| panic!("the proxy needs http://ADDRESS:PORT, not {endpoint}: {e}"));
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("the port's number");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || accept(&listener, upstream, &shared));
        Self { address, state }
    }

    /// What to give walship in `AWS_ENDPOINT_URL`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on this happens to every request. `Refuse` also closes the connections there are.
    pub fn set(&self, fault: Fault) {
        let mut state = lock(&self.state);
        state.lasting = Some(fault);
        if fault == Fault::Refuse {
            close_all(&mut state);
        }
    }

    /// This happens to the next request of this method only, before what [`Proxy::set`] says.
    pub fn next(&self, method: &str, fault: Fault) {
        lock(&self.state).once.push_back((method.to_owned(), fault));
    }

    /// This happens to the next request of this method whose target contains this text.
    pub fn next_at(&self, method: &str, target: &str, fault: Fault) {
        let of = (method.to_owned(), target.to_owned(), fault);
        lock(&self.state).once_at.push(of);
    }

    /// This happens to the first request of this method to each target from now on, and to none after it.
    pub fn first_of_each(&self, method: &str, fault: Fault) {
        let mut state = lock(&self.state);
        state.first = Some((method.to_owned(), fault));
        state.seen.clear();
    }

    /// Nothing more happens to requests that were named beforehand.
    pub fn forget_faults(&self) {
        lock(&self.state).once_at.clear();
    }

    /// Keeps the first request of this method whose target contains this text waiting, before it is
    /// passed on.
    pub fn hold(&self, method: &str, target: &str) -> Held {
        let (came_sender, came) = channel();
        let (release_sender, release) = channel();
        lock(&self.state).holds.push(Hold {
            method: method.to_owned(),
            target: target.to_owned(),
            came: came_sender,
            release,
        });
        Held {
            came,
            _release: release_sender,
        }
    }

    /// How many requests of this method came so far.
    pub fn count(&self, method: &str) -> usize {
        lock(&self.state)
            .requests
            .iter()
            .filter(|request| request.method == method)
            .count()
    }

    /// How many connections came so far.
    pub fn connections(&self) -> usize {
        lock(&self.state).accepted
    }

    /// Every request so far, in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.state).requests.clone()
    }

    /// Forgets requests and connections counted so far.
    pub fn forget(&self) {
        let mut state = lock(&self.state);
        state.requests.clear();
        state.accepted = 0;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        {
            let mut state = lock(&self.state);
            state.closing = true;
            close_all(&mut state);
        }
        // Wakes the accepting thread, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no thread of the proxy panics with the lock")
}

fn close_all(state: &mut State) {
    for connection in state.connections.drain(..) {
        let _ = connection.shutdown(Shutdown::Both);
    }
}

fn accept(listener: &TcpListener, upstream: SocketAddr, state: &Arc<Mutex<State>>) {
    for client in listener.incoming() {
        let Ok(client) = client else { continue };
        {
            let mut state = lock(state);
            if state.closing {
                return;
            }
            state.accepted += 1;
            if state.lasting == Some(Fault::Refuse) {
                continue; // dropped, and so closed
            }
            let Ok(handle) = client.try_clone() else { continue };
            state.connections.push(handle);
        }
        let state = Arc::clone(state);
        thread::spawn(move || {
            // An error here is a connection that one side closed.
            let _ = serve(&client, upstream, &state);
            let peer = client.peer_addr().ok();
            let _ = client.shutdown(Shutdown::Both);
            lock(&state)
                .connections
                .retain(|other| other.peer_addr().ok() != peer);
        });
    }
}

/// What the thread that passes responses back has to know of each request, in order.
type Expected = Arc<Mutex<VecDeque<(String, Fault)>>>;

/// Passes requests of one connection on; a second thread passes the responses back.
fn serve(client: &TcpStream, upstream: SocketAddr, state: &Mutex<State>) -> Result<()> {
    client.set_nodelay(true)?;
    let mut from_client = BufReader::new(client.try_clone()?);
    let expected = Expected::default();
    let mut server: Option<TcpStream> = None;
    loop {
        let Some(head) = Head::read(&mut from_client)? else {
            if let Some(server) = &server {
                server.shutdown(Shutdown::Both)?;
            }
            return Ok(());
        };
        let (fault, hold) = note(state, &head);
        if let Some(hold) = hold {
            // Whoever held it may have gone.
            let _ = hold.came.send(());
            let _ = hold.release.recv();
        }
        match fault {
            Fault::Refuse => {
                if let Some(server) = &server {
                    server.shutdown(Shutdown::Both)?;
                }
                return Ok(());
            }
            Fault::BlackHole => {
                std::io::copy(&mut from_client, &mut std::io::sink())?;
                return Ok(());
            }
            Fault::Answer(status) => {
                if head.has("expect", "100-continue") {
                    (&mut &*client).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                }
                head.request_body().copy(&mut from_client, &mut std::io::sink())?;
                let answer = format!("HTTP/1.1 {status} Fault\r\ncontent-length: 0\r\n\r\n");
                (&mut &*client).write_all(answer.as_bytes())?;
                continue;
            }
            Fault::AnswerWith(text) => {
                head.request_body().copy(&mut from_client, &mut std::io::sink())?;
                let date = chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
                let length = text.len();
                let answer =
                    format!("HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-length: {length}\r\n\r\n{text}");
                (&mut &*client).write_all(answer.as_bytes())?;
                continue;
            }
            Fault::Delay(time) => thread::sleep(time),
            Fault::Pass
            | Fault::Date(_)
            | Fault::CutAfter(_)
            | Fault::CutBody
            | Fault::CutUnnoticed
            | Fault::Flip(_)
            | Fault::DropResponse => {}
        }
        if server.is_none() {
            let to_server = TcpStream::connect(upstream)?;
            to_server.set_nodelay(true)?;
            let (from_server, client) = (to_server.try_clone()?, client.try_clone()?);
            let expected = Arc::clone(&expected);
            thread::spawn(move || {
                let _ = pass_responses(&from_server, &client, &expected);
                let _ = client.shutdown(Shutdown::Both);
                let _ = from_server.shutdown(Shutdown::Both);
            });
            server = Some(to_server);
        }
        let Some(to_server) = &mut server else {
            return Ok(());
        };
        expected
            .lock()
            .map_err(|_| ErrorKind::Other)?
            .push_back((head.method(), fault));
        to_server.write_all(&head.bytes)?;
        head.request_body().copy(&mut from_client, to_server)?;
    }
}

/// Records a request and decides what happens to it.
fn note(state: &Mutex<State>, head: &Head) -> (Fault, Option<Hold>) {
    let mut state = lock(state);
    let (method, target) = (head.method(), head.target());
    let once = state.once.iter().position(|(of, _)| *of == method);
    let kept = state
        .holds
        .iter()
        .position(|hold| hold.method == method && target.contains(&hold.target));
    let at = state
        .once_at
        .iter()
        .position(|(of, part, _)| *of == method && target.contains(part));
    let at = at.map(|index| state.once_at.remove(index));
    let head = head.text.clone();
    let of_first = state.first.clone().filter(|(of, _)| *of == method);
    let first = of_first.filter(|_| state.seen.insert(target.clone()));
    state.requests.push(Request { method, target, head });
    let fault = match once.and_then(|index| state.once.remove(index)).or(first) {
        _ if let Some((_, _, fault)) = at => fault,
        Some((_, fault)) => fault,
        None => state.lasting.unwrap_or(Fault::Pass),
    };
    (fault, kept.map(|index| state.holds.swap_remove(index)))
}

fn pass_responses(server: &TcpStream, mut client: &TcpStream, expected: &Expected) -> Result<()> {
    let mut from_server = BufReader::new(server);
    while let Some(head) = Head::read(&mut from_server)? {
        if head.status() < 200 {
            client.write_all(&head.bytes)?; // 100 Continue: the response itself is yet to come
            continue;
        }
        let next = expected.lock().map_err(|_| ErrorKind::Other)?.pop_front();
        let (method, fault) = next.ok_or(ErrorKind::InvalidData)?;
        let body = head.response_body(&method);
        match fault {
            Fault::DropResponse => {
                // Read to its end: the server is surely done with the request.
                body.copy(&mut from_server, &mut std::io::sink())?;
                return Ok(());
            }
            Fault::CutAfter(bytes) => {
                let mut limited = Limited {
                    to: client,
                    left: bytes,
                };
                limited.write_all(&head.bytes)?;
                body.copy(&mut from_server, &mut limited)?;
                return Ok(()); // the response was shorter than the cut: closed after it
            }
            Fault::CutBody => {
                client.write_all(&head.bytes)?;
                let left = match body {
                    Body::Length(length) => length / 2,
                    Body::Chunked | Body::UntilClose => 20,
                };
                return body.copy(&mut from_server, &mut Limited { to: client, left });
            }
            Fault::CutUnnoticed => {
                let mut whole = Vec::new();
                body.copy(&mut from_server, &mut whole)?;
                let has_length = |line: &str| line.to_ascii_lowercase().starts_with("content-length:");
                let lines = head.text.split_inclusive("\r\n").filter(|line| !has_length(line));
                let mut text: String = lines.collect();
                text.truncate(text.len() - 2);
                client.write_all(format!("{text}Connection: close\r\n\r\n").as_bytes())?;
                return client.write_all(&whole[..whole.len() / 2]);
            }
            Fault::Flip(at) => {
                let mut whole = Vec::new();
                body.copy(&mut from_server, &mut whole)?;
                let length = whole.len().max(1);
                if let Some(byte) = whole.get_mut(at % length) {
                    *byte ^= 1;
                }
                client.write_all(&head.bytes)?;
                client.write_all(&whole)?;
            }
            Fault::Date(seconds) => {
                client.write_all(&head.dated(seconds))?;
                body.copy(&mut from_server, &mut client)?;
            }
            _ => {
                client.write_all(&head.bytes)?;
                body.copy(&mut from_server, &mut client)?;
            }
        }
    }
    Ok(())
}

/// Fails after a number of bytes.
struct Limited<W> {
    to: W,
    left: u64,
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let length = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if length == 0 && !bytes.is_empty() {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        self.to.write_all(&bytes[..length])?;
        self.left -= length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> Result<()> {
        self.to.flush()
    }
}

/// The first line and headers of a request or response, with the empty line that ends them.
struct Head {
    bytes: Vec<u8>,
    text: String,
}

impl Head {
    /// None at the end of the connection.
    fn read(from: &mut impl BufRead) -> Result<Option<Self>> {
        let mut bytes = Vec::new();
        loop {
            let start = bytes.len();
            if from.read_until(b'\n', &mut bytes)? == 0 {
                return if start == 0 {
                    Ok(None)
                } else {
                    Err(ErrorKind::UnexpectedEof.into())
                };
            }
            if matches!(&bytes[start..], b"\r\n" | b"\n") {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                return Ok(Some(Self { bytes, text }));
            }
        }
    }

    fn word(&self, index: usize) -> String {
        let first = self.text.lines().next().unwrap_or_default();
        first.split_whitespace().nth(index).unwrap_or_default().to_owned()
    }

    fn method(&self) -> String {
        self.word(0)
    }

    fn target(&self) -> String {
        self.word(1)
    }

    fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or(0)
    }

    fn header(&self, name: &str) -> Option<&str> {
        header(&self.text, name)
    }

    fn has(&self, name: &str, value: &str) -> bool {
        self.header(name)
            .is_some_and(|present| present.to_ascii_lowercase().contains(value))
    }

    fn length(&self) -> Option<Body> {
        if self.has("transfer-encoding", "chunked") {
            return Some(Body::Chunked);
        }
        self.header("content-length")?.parse().ok().map(Body::Length)
    }

    /// The head with another `Date`.
    fn dated(&self, off_seconds: i64) -> Vec<u8> {
        let date = chrono::Utc::now() + chrono::TimeDelta::seconds(off_seconds);
        let date = date.format("%a, %d %b %Y %H:%M:%S GMT");
        let is_date = |line: &str| line.to_ascii_lowercase().starts_with("date:");
        let lines = self.text.split_inclusive("\r\n").filter(|line| !is_date(line));
        let mut text: String = lines.collect();
        text.truncate(text.len() - 2);
        format!("{text}Date: {date}\r\n\r\n").into_bytes()
    }

    fn request_body(&self) -> Body {
        self.length().unwrap_or(Body::Length(0))
    }

    fn response_body(&self, method: &str) -> Body {
        if method == "HEAD" || matches!(self.status(), 204 | 304) {
            return Body::Length(0);
        }
        self.length().unwrap_or(Body::UntilClose)
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    headers
        .find(|(present, _)| present.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// Where a body ends.
enum Body {
    Length(u64),
    Chunked,
    UntilClose,
}

impl Body {
    fn copy(&self, from: &mut impl BufRead, to: &mut impl Write) -> Result<()> {
        match self {
            Self::Length(length) => copy_exactly(from, to, *length),
            Self::UntilClose => std::io::copy(from, to).map(|_| ()),
            Self::Chunked => copy_chunks(from, to),
        }
    }
}

fn copy_exactly(from: &mut impl BufRead, to: &mut impl Write, length: u64) -> Result<()> {
    let copied = std::io::copy(&mut from.take(length), to)?;
    if copied == length {
        Ok(())
    } else {
        Err(ErrorKind::UnexpectedEof.into())
    }
}

/// Chunks, the last empty one, and the trailers up to the empty line.
fn copy_chunks(from: &mut impl BufRead, to: &mut impl Write) -> Result<()> {
    loop {
        let line = copy_line(from, to)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|e| Error::new(ErrorKind::InvalidData, e))?;
        if size == 0 {
            while !copy_line(from, to)?.trim().is_empty() {}
            return Ok(());
        }
        copy_exactly(from, to, size + 2)?; // with the line end after it
    }
}

fn copy_line(from: &mut impl BufRead, to: &mut impl Write) -> Result<String> {
    let mut line = Vec::new();
    if from.read_until(b'\n', &mut line)? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    to.write_all(&line)?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}
