//! A receiver of events over HTTP, which can be away.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Keeps the keys of what it is sent.
pub struct Collector {
    port: u16,
    is_away: Arc<AtomicBool>,
    /// Epoch and number.
    keys: Arc<Mutex<BTreeSet<(String, u64)>>>,
}

impl Collector {
    /// On a free port of the loopback.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let collector = Self {
            port: listener.local_addr()?.port(),
            is_away: Arc::default(),
            keys: Arc::default(),
        };
        let (is_away, keys) = (collector.is_away.clone(), collector.keys.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (is_away, keys) = (is_away.clone(), keys.clone());
                thread::spawn(move || answer(&stream, &is_away, &keys));
            }
        });
        Ok(collector)
    }

    /// What a daemon is told to send to.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/#shape=native", self.port)
    }

    /// From now on it takes nothing, or everything.
    pub fn set_away(&self, away: bool) {
        self.is_away.store(away, Ordering::Relaxed);
    }

    /// How many records it has.
    pub fn count(&self) -> usize {
        self.keys.lock().map_or(0, |keys| keys.len())
    }

    /// Whether it has every record of this epoch up to this number.
    pub fn has_all(&self, (epoch, last): &(String, u64)) -> bool {
        self.keys
            .lock()
            .is_ok_and(|keys| (1..=*last).all(|number| keys.contains(&(epoch.clone(), number))))
    }
}

/// Answers one connection's requests, until it ends.
fn answer(
    stream: &TcpStream,
    is_away: &AtomicBool,
    keys: &Mutex<BTreeSet<(String, u64)>>,
) -> Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let status = if is_away.load(Ordering::Relaxed) {
            "503 Service Unavailable"
        } else {
            take(&body, keys)?;
            "204 No Content"
        };
        let mut stream = stream;
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")?;
    }
}

/// A record, several in an array, or one a line.
fn take(body: &[u8], keys: &Mutex<BTreeSet<(String, u64)>>) -> Result<()> {
    let documents = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    let mut keys = keys.lock().ok().context("a connection panicked")?;
    for document in documents {
        let records = match document? {
            Value::Array(records) => records,
            record => vec![record],
        };
        for record in records {
            let epoch = record["epoch"].as_str().unwrap_or_default().to_owned();
            keys.insert((epoch, record["sequence"].as_u64().context("no sequence")?));
        }
    }
    Ok(())
}
