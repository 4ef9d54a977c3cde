//! The least work that a push, a restore or a compression can be, for `scripts/bench` to measure
//! walship and its peers against: one thread, no promises, and time taken inside the process.
//!
//! ```text
//! bench_floor put WARM TARGET LEVEL FILE   read, compress, SHA-256 and store FILE, twice
//! bench_floor get WARM SOURCE FILE         fetch, SHA-256, decompress and write FILE, twice
//! bench_floor levels FILE LEVEL...         compress and decompress FILE at each level
//! bench_floor put-all THREADS LEVEL        the same work for many files, on several threads
//! bench_floor get-all THREADS
//! bench_floor read-all THREADS             only fetch, so that it is in the caches
//! bench_floor check THREADS                compare what is stored or delivered with the originals
//! ```
//! `put` and `get` first do the same with WARM, so that the connection and the caches are warm, and
//! print the wall and CPU time of the second: `{"wall_us": 1, "cpu_us": 1, "stored": 1}`. Targets
//! and sources are paths or presigned `http://` URLs, all of one server. The last four read lines of
//! two words, such a place and a file.

#![allow(clippy::print_stdout)]

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use sha2::{Digest, Sha256};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const PIECE_BYTES: usize = 128 << 10;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["put", warm, target, level, file] => {
            let mut server = Server::of(target)?;
            put(&mut server, warm, file, level.parse()?)?;
            let clock = Clock::start()?;
            let stored = put(&mut server, target, file, level.parse()?)?;
            clock.print(stored)
        }
        ["get", warm, source, file] => {
            let mut server = Server::of(source)?;
            get(&mut server, warm, file)?;
            fs::remove_file(file)?;
            let clock = Clock::start()?;
            let stored = get(&mut server, source, file)?;
            clock.print(stored)
        }
        ["levels", file, levels @ ..] => {
            let content = fs::read(file)?;
            levels
                .iter()
                .try_for_each(|level| measure_level(&content, level.parse()?))
        }
        ["put-all", threads, level] => {
            let level = level.parse()?;
            for_each_line(threads.parse()?, |server, target, file| {
                put(server, target, file, level).map(drop)
            })
        }
        ["get-all", threads] => for_each_line(threads.parse()?, |server, source, file| {
            get(server, source, file).map(drop)
        }),
        ["read-all", threads] => for_each_line(threads.parse()?, |server, place, _| {
            io::copy(&mut server.get(place)?.1, &mut io::sink())?;
            Ok(())
        }),
        ["check", threads] => for_each_line(threads.parse()?, check),
        _ => Err(
            "usage: bench_floor put|get|levels|put-all|get-all|read-all|check ...; see scripts/bench".into(),
        ),
    }
}

/// Stores the file; returns the stored bytes.
fn put(server: &mut Server, target: &str, file: &str, level: i32) -> Outcome<u64> {
    let body = zstd::bulk::compress(&fs::read(file)?, level)?;
    std::hint::black_box(Sha256::digest(&body));
    server.put(target, &body)?;
    Ok(body.len() as u64)
}

/// Fetches into the file; returns the stored bytes. Like what `restore_command` delivers, the file
/// is not synced.
fn get(server: &mut Server, source: &str, file: &str) -> Outcome<u64> {
    let mut destination = File::create(file)?;
    let (stored, mut body) = server.get(source)?;
    let mut object = Vec::with_capacity(stored as usize);
    body.read_to_end(&mut object)?;
    std::hint::black_box(Sha256::digest(&object));
    let mut decoder = zstd::stream::read::Decoder::new(object.as_slice())?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length = decoder.read(&mut piece)?;
        let Some(bytes) = piece.get(..length).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        destination.write_all(bytes)?;
    }
    Ok(stored)
}

/// Does the same with each line of the input, in its order, each thread on a connection of its own.
fn for_each_line(
    threads: usize,
    work: impl Fn(&mut Server, &str, &str) -> Outcome<()> + Sync,
) -> Outcome<()> {
    let lines = io::read_to_string(io::stdin())?;
    let next = Mutex::new(lines.lines());
    let run = || -> Result<(), String> {
        let mut server = None;
        loop {
            let Some(line) = next.lock().map_err(|error| error.to_string())?.next() else {
                return Ok(());
            };
            let (place, file) = line.split_once(' ').ok_or("a line without two words")?;
            let failed = |error: Box<dyn std::error::Error>| format!("{file}: {error}");
            let server = match &mut server {
                Some(server) => server,
                none => none.insert(Server::of(place).map_err(failed)?),
            };
            work(server, place, file).map_err(failed)?;
        }
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        for thread in running {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })
}

/// Fails unless the place holds the file's content, as it is or compressed.
fn check(server: &mut Server, place: &str, file: &str) -> Outcome<()> {
    /// First bytes of a zstd frame (RFC 8878).
    const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    let mut stored = Vec::new();
    server.get(place)?.1.read_to_end(&mut stored)?;
    if stored.starts_with(&ZSTD_MAGIC) {
        stored = zstd::stream::decode_all(stored.as_slice())?;
    }
    if stored == fs::read(file)? {
        return Ok(());
    }
    let place = place.split('?').next().unwrap_or(place);
    Err(format!("{place} holds something else").into())
}

/// Prints one line of JSON: bytes, and microseconds of CPU in each direction.
fn measure_level(content: &[u8], level: i32) -> Outcome<()> {
    let clock = Clock::start()?;
    let compressed = zstd::bulk::compress(content, level)?;
    let compression = clock.cpu_microseconds()?;
    let clock = Clock::start()?;
    let back = zstd::bulk::decompress(&compressed, content.len())?;
    let decompression = clock.cpu_microseconds()?;
    if back != content {
        return Err(format!("level {level} does not round-trip").into());
    }
    println!(
        r#"{{"level": {level}, "bytes": {}, "stored": {}, "compress_us": {compression}, "decompress_us": {decompression}}}"#,
        content.len(),
        compressed.len()
    );
    Ok(())
}

/// Where objects are stored: a directory, or one keep-alive connection.
enum Server {
    Directory,
    Http(BufReader<TcpStream>),
}

impl Server {
    fn of(url: &str) -> Outcome<Self> {
        let Some((host, _)) = split_url(url) else {
            return Ok(Self::Directory);
        };
        let stream = TcpStream::connect(host)?;
        stream.set_nodelay(true)?;
        Ok(Self::Http(BufReader::with_capacity(PIECE_BYTES, stream)))
    }

    /// Durably, where it is a directory.
    fn put(&mut self, target: &str, body: &[u8]) -> Outcome<()> {
        let Self::Http(connection) = self else {
            let temporary = format!("{target}.tmp");
            let mut file = File::create_new(&temporary)?;
            file.write_all(body)?;
            file.sync_all()?;
            fs::rename(&temporary, target)?;
            File::open(Path::new(target).parent().ok_or("no folder")?)?.sync_all()?;
            return Ok(());
        };
        request(connection, "PUT", target, Some(body))?;
        let length = response(connection)?;
        io::copy(&mut connection.take(length), &mut io::sink())?;
        Ok(())
    }

    fn get(&mut self, source: &str) -> Outcome<(u64, Box<dyn BufRead + '_>)> {
        let Self::Http(connection) = self else {
            let file = File::open(source)?;
            let length = file.metadata()?.len();
            return Ok((length, Box::new(BufReader::with_capacity(PIECE_BYTES, file))));
        };
        request(connection, "GET", source, None)?;
        let length = response(connection)?;
        Ok((length, Box::new(connection.take(length))))
    }
}

fn request(
    connection: &mut BufReader<TcpStream>,
    method: &str,
    url: &str,
    body: Option<&[u8]>,
) -> Outcome<()> {
    let (host, path) = split_url(url).ok_or("not an http:// URL")?;
    let length = body.map_or(String::new(), |body| {
        format!("Content-Length: {}\r\n", body.len())
    });
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{length}\r\n");
    connection.get_mut().write_all(head.as_bytes())?;
    connection.get_mut().write_all(body.unwrap_or_default())?;
    Ok(())
}

/// Reads a response's head; returns the length of its body.
fn response(connection: &mut BufReader<TcpStream>) -> Outcome<u64> {
    let mut line = String::new();
    connection.read_line(&mut line)?;
    if !line.starts_with("HTTP/1.1 200") {
        return Err(format!("the server says {}", line.trim()).into());
    }
    let mut length = 0;
    loop {
        line.clear();
        connection.read_line(&mut line)?;
        if line.trim().is_empty() {
            return Ok(length);
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse()?;
        }
    }
}

/// `http://HOST/PATH` as host and path.
fn split_url(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("http://")?;
    Some(rest.split_at(rest.find('/')?))
}

/// Wall time, and the CPU time of this process's only thread.
struct Clock {
    wall: Instant,
    cpu_nanoseconds: u64,
}

impl Clock {
    fn start() -> Outcome<Self> {
        Ok(Self {
            cpu_nanoseconds: cpu_nanoseconds()?,
            wall: Instant::now(),
        })
    }

    fn cpu_microseconds(&self) -> Outcome<u64> {
        Ok((cpu_nanoseconds()? - self.cpu_nanoseconds) / 1000)
    }

    fn print(&self, stored: u64) -> Outcome<()> {
        let wall = self.wall.elapsed().as_micros();
        let cpu = self.cpu_microseconds()?;
        println!(r#"{{"wall_us": {wall}, "cpu_us": {cpu}, "stored": {stored}}}"#);
        Ok(())
    }
}

/// The first field of `schedstat` (Linux, Documentation/scheduler/sched-stats.rst), which is brought
/// up to date whenever the scheduler runs.
fn cpu_nanoseconds() -> Outcome<u64> {
    std::thread::yield_now();
    let line = fs::read_to_string("/proc/self/schedstat")?;
    Ok(line.split(' ').next().ok_or("empty schedstat")?.parse()?)
}
