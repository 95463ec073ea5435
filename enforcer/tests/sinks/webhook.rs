//! A real HTTP server that has bad days.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::Value;

use super::{Log, until};

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    requests: u32,
    media: BTreeSet<String>,
    authorization: BTreeSet<String>,
    /// Source and id.
    keys: Vec<String>,
}

async fn receive(State(seen): State<Seen>, headers: HeaderMap, body: Bytes) -> Response {
    let mut inner = seen.0.lock().expect("lock");
    inner.requests += 1;
    let later =
        |status, after| (status, [(HeaderName::from_static("retry-after"), after)]).into_response();
    match inner.requests {
        1 => return later(StatusCode::SERVICE_UNAVAILABLE, "1"),
        2 => return later(StatusCode::TOO_MANY_REQUESTS, "0"),
        3 => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        // A proxy before it, perhaps.
        4 => return StatusCode::NOT_FOUND.into_response(),
        _ => {}
    }
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    inner.media.insert(header("content-type"));
    inner.authorization.insert(header("authorization"));
    let batch: Vec<Value> = match serde_json::from_slice(&body).expect("JSON") {
        Value::Array(batch) => batch,
        one => vec![one],
    };
    for event in &batch {
        let source = event["source"].as_str().expect("source");
        let source = source.strip_prefix("//enforcer/").expect("ours");
        inner
            .keys
            .push(format!("{source}/{}", event["id"].as_str().expect("id")));
    }
    if inner.requests == 6 {
        // It has them, and cannot say so any more: they come again.
        drop(inner);
        return StatusCode::BAD_GATEWAY.into_response();
    }
    StatusCode::ACCEPTED.into_response()
}

/// Serves on a thread of its own for as long as the test.
fn serve(seen: Seen) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("set");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
            let router = Router::new().route("/in", post(receive)).with_state(seen);
            axum::serve(listener, router).await.expect("served");
        });
    });
    format!("http://{address}/in?tenant=7")
}

#[test]
fn errors_and_lost_answers_lose_nothing_and_keys_tell_what_came_twice() {
    let mut log = Log::new();
    log.write(230);
    let token = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(token.path(), "abc\n").expect("written");
    let seen = Seen::default();
    let url = serve(seen.clone());
    let sinks = log.sinks(&[&format!(
        "hook={url}#batch=50&token={}",
        token.path().display()
    )]);
    until("delivered", || sinks.health()[0].delivered == 230);
    sinks.stop(Duration::from_secs(5));
    let inner = seen.0.lock().expect("lock");
    let mut once = Vec::new();
    for key in &inner.keys {
        if !once.contains(key) {
            once.push(key.clone());
        }
    }
    assert_eq!(once, log.keys());
    assert_eq!(inner.keys.len(), 280, "one batch came twice");
    let one = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(one(&inner.media), "application/cloudevents-batch+json");
    assert_eq!(one(&inner.authorization), "Bearer abc");
}

#[test]
fn one_each_is_a_structured_cloud_event() {
    let mut log = Log::new();
    log.write(3);
    let seen = Seen::default();
    let url = serve(seen.clone());
    let sinks = log.sinks(&[&format!("hook={url}#batch=1")]);
    until("delivered", || sinks.health()[0].delivered == 3);
    let inner = seen.0.lock().expect("lock");
    assert!(inner.media.contains("application/cloudevents+json"));
    assert_eq!(inner.media.len(), 1);
}
