//! The page: what this node decides, for whoever has the token. Loopback only; it changes nothing.

use std::convert::Infallible;
use std::fs;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Path as Part, Request, State};
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use enforcer_bundle::Digest;
use enforcer_governance::journal::Reader;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::BroadcastStream;

use super::board::{Board, Line};
use crate::shape::Record;

/// So many lines wait for a reader that is slow; of more, it is told how many it has missed.
const WAITING: usize = 1024;
/// Of one read of the log.
const RECORDS: usize = 1000;
const BYTES: usize = 1024 * 1024;
/// Nothing but what the daemon itself serves: no other origin, no inline script or style, no frame, no form.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the daemon is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// How the node is.
    Status,
    /// Every entitlement and credential with what it was used for.
    Usage,
    /// What is to be reviewed.
    Findings,
}

/// Where to ask, and for the answer.
pub type Ask = mpsc::Sender<(Document, oneshot::Sender<Value>)>;

/// Binds the address.
///
/// # Errors
/// If it is not a loopback address, or taken.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_loopback() {
        let message = format!(
            "{address}: the page is served on loopback addresses only, such as 127.0.0.1:9479"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let listener = TcpListener::bind(address)
        .map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A new token, and the page's address with it in a file that only its owner reads.
///
/// # Errors
/// If the file cannot be written.
pub fn invite(listener: &TcpListener, file: &Path) -> io::Result<String> {
    let token = format!("{:032x}", rand::random::<u128>());
    // Not only rewritten: somebody may have the old one open.
    let _ = fs::remove_file(file);
    let mut file = fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(file)?;
    writeln!(file, "http://{}/#{token}", listener.local_addr()?)?;
    Ok(token)
}

/// Serves on a thread of its own, for as long as the process lives.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(listener: TcpListener, log: Reader, ask: Ask, token: &str) -> io::Result<()> {
    let page = Page {
        token: Digest::of_bytes(token.as_bytes()).0,
        ask,
        board: Arc::default(),
        lines: broadcast::Sender::new(WAITING),
        port: listener.local_addr()?.port(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("page".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::spawn(page.clone().follow(log));
                let served = async {
                    axum::serve(tokio::net::TcpListener::from_std(listener)?, router(page)).await
                };
                if let Err(error) = served.await {
                    tracing::error!(%error, "the page is not served any more");
                }
            });
        })?;
    Ok(())
}

#[derive(Clone)]
struct Page {
    /// The token's digest: comparing those tells nothing of the token by how long it takes.
    token: String,
    ask: Ask,
    board: Arc<Mutex<Board>>,
    lines: broadcast::Sender<Line>,
    port: u16,
}

fn router(page: Page) -> Router {
    let guarded = Router::new()
        .route("/api/board", get(board))
        .route("/api/events", get(events))
        .route("/api/{document}", get(document))
        .layer(middleware::from_fn_with_state(page.clone(), admit));
    Router::new()
        .route(
            "/",
            get(|| async { file("text/html; charset=utf-8", include_str!("page.html")) }),
        )
        .route(
            "/page.js",
            get(|| async { file("text/javascript; charset=utf-8", include_str!("page.js")) }),
        )
        .route(
            "/page.css",
            get(|| async { file("text/css; charset=utf-8", include_str!("page.css")) }),
        )
        .merge(guarded)
        .layer(middleware::from_fn_with_state(page.clone(), protect))
        .with_state(page)
}

fn file(media: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, media)], text).into_response()
}

/// Lets in who has the token.
async fn admit(State(page): State<Page>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION);
    let given = given.and_then(|it| it.to_str().ok()?.strip_prefix("Bearer "));
    match given.map(|it| Digest::of_bytes(it.as_bytes()).0 == page.token) {
        Some(true) => next.run(request).await,
        _ => (StatusCode::UNAUTHORIZED, "the token is missing or an older daemon's: open the page by what `enforcer page` prints\n").into_response(),
    }
}

/// Refuses names that another site may have made up for this address, and puts the policy on every answer.
async fn protect(State(page): State<Page>, request: Request, next: Next) -> Response {
    let mut answer = match is_local(request.headers(), page.port) {
        true => next.run(request).await,
        false => (
            StatusCode::MISDIRECTED_REQUEST,
            "ask by the address that `enforcer page` prints\n",
        )
            .into_response(),
    };
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn is_local(headers: &HeaderMap, port: u16) -> bool {
    let host = headers.get(header::HOST).and_then(|it| it.to_str().ok());
    let Some((name, asked)) = host.and_then(|it| it.rsplit_once(':')) else {
        return false;
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = name
        .parse()
        .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    asked == port.to_string() && (name == "localhost" || is_loopback)
}

async fn document(State(page): State<Page>, Part(name): Part<String>) -> Response {
    let document = match name.as_str() {
        "status" => Document::Status,
        "usage" => Document::Usage,
        "findings" => Document::Findings,
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let (answer, answered) = oneshot::channel();
    let asked = page.ask.send((document, answer)).await;
    match (asked, answered.await) {
        (Ok(()), Ok(value)) => answer_with(&value),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "the daemon stops\n").into_response(),
    }
}

async fn board(State(page): State<Page>) -> Response {
    let board = page.board.lock().unwrap_or_else(PoisonError::into_inner);
    answer_with(&json!({"board": &*board, "recent": &board.recent}))
}

fn answer_with(value: &Value) -> Response {
    (
        [(header::CONTENT_TYPE, "application/json")],
        value.to_string(),
    )
        .into_response()
}

/// Each decision from now on.
async fn events(State(page): State<Page>) -> Response {
    let lines = BroadcastStream::new(page.lines.subscribe());
    let events = lines.map(|line| {
        let event = match line {
            Ok(line) => Event::default()
                .event("decision")
                .data(json!(line).to_string()),
            Err(tokio_stream::wrappers::errors::BroadcastStreamRecvError::Lagged(count)) => {
                Event::default().event("missed").data(count.to_string())
            }
        };
        Ok::<_, Infallible>(event)
    });
    Sse::new(events)
        .keep_alive(KeepAlive::default())
        .into_response()
}

impl Page {
    /// Adds up the log, from its oldest record on.
    async fn follow(self, log: Reader) {
        let mut cursor = log.from(1);
        loop {
            cursor.wait().await;
            match cursor.read(RECORDS, BYTES) {
                Ok(batch) => self.add(&batch.lines),
                Err(error) => {
                    tracing::warn!(%error, "the page cannot read the log");
                    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn add(&self, lines: &[Vec<u8>]) {
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        for line in lines {
            let Ok(record) = serde_json::from_slice::<Value>(line) else {
                continue;
            };
            board.add(&record);
            if Record(&record).is_decision() {
                // Nobody need be looking.
                let _ = self.lines.send(Line::new(Record(&record)));
            }
        }
    }
}
