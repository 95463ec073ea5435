//! Documents from a web server, as OPA's bundles are distributed.

use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use enforcer_governance::server::{Location, Source};
use flate2::{Compression, write::GzEncoder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::node::{Node, until};
use super::server::{Server, documents};

const TOKEN: &str = "a-token";

/// A web server with one file, which answers when that is another than the one that is known.
struct Web {
    url: String,
    file: watch::Sender<(String, Vec<u8>)>,
    asked: Arc<AtomicU64>,
    strange: Arc<Mutex<Vec<String>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Web {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        // As no writer of archives would.
        let place = &mut header.as_old_mut().name;
        place[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, text.as_bytes()).expect("appended");
    }
    let mut gzip = tar.into_inner().expect("written");
    gzip.flush().expect("flushed");
    gzip.finish().expect("finished")
}

impl Web {
    async fn start(tag: &str, body: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (file, following) = watch::channel((tag.to_owned(), body));
        let asked = Arc::new(AtomicU64::new(0));
        let strange = Arc::new(Mutex::new(Vec::new()));
        let (count, complaints) = (asked.clone(), strange.clone());
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let (mut following, complaints) = (following.clone(), complaints.clone());
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                            return;
                        }
                        request.push(byte[0]);
                    }
                    let request = String::from_utf8_lossy(&request).to_lowercase();
                    for expected in [
                        "authorization: bearer a-token",
                        "prefer: modes=snapshot;wait=",
                    ] {
                        if !request.contains(expected) {
                            complaints.lock().expect("lock").push(request.clone());
                        }
                    }
                    let known = request
                        .lines()
                        .find_map(|it| it.strip_prefix("if-none-match: "));
                    if let Some(known) = known.map(str::to_owned) {
                        let _ = following.wait_for(|(tag, _)| *tag != known).await;
                    }
                    let (tag, body) = following.borrow().clone();
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nETag: {tag}\r\nContent-Type: application/vnd.openpolicyagent.bundles\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
                });
            }
        });
        Self {
            url: format!("http://{address}/bundle.tar.gz"),
            file,
            asked,
            strange,
            serving,
        }
    }

    fn has(&self, tag: &str, body: Vec<u8>) {
        self.file.send_replace((tag.to_owned(), body));
    }
}

/// A document of the bundle, by a name that leads elsewhere.
const ESCAPED: &str = "apiVersion: enforcer.dev/v1
kind: Bundle
entitlements: [{id: E9, workload: app, credential: key, destinations: none}]
";

fn whole(entitlements: &[&str]) -> Vec<u8> {
    archive(&[
        (".manifest", "{\"revision\": \"1\"}"),
        ("fleet/bundle.yaml", &documents(entitlements)),
        ("../../escaped.yaml", ESCAPED),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_are_followed() {
    let place = tempfile::tempdir().expect("directory");
    let web = Web::start("\"1\"", whole(&["E1"])).await;
    let token = place.path().join("web-token");
    std::fs::write(&token, TOKEN).expect("written");
    let source = || {
        Some(Source::Remote(Location {
            url: web.url.clone(),
            token: Some(token.clone()),
        }))
    };
    let server = Server::start_from(place.path(), "127.0.0.1:0", None, source(), None).await;
    let server = server.expect("started");
    let own = server.admit("n1", &[]).await;
    let node = Node::start(&server.place(), "n1", &own, &[]);
    node.until_in_force("E1 E9").await;
    // It counts like any other, and lies where the others do.
    let unpacked = place.path().join("server/documents");
    assert!(unpacked.join("_.._escaped.yaml").exists());
    for elsewhere in ["server/escaped.yaml", "escaped.yaml"] {
        assert!(!place.path().join(elsewhere).exists(), "{elsewhere}");
    }

    web.has("\"2\"", whole(&["E1", "E2"]));
    node.until_in_force("E1 E2 E9").await;
    // What is no archive, or no bundle, changes nothing, and is not asked for again at once.
    let asked = || web.asked.load(Ordering::Relaxed);
    until("the third question", asked, |it| *it == 3).await;
    web.has("\"3\"", b"nonsense".to_vec());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(asked(), 3);
    assert_eq!(node.in_force(), "E1 E2 E9");
    assert_eq!(*web.strange.lock().expect("lock"), [] as [String; 0]);
    server.stop().await;

    // A server that starts has the last documents, whether the web server has no good ones now, or is gone.
    web.has("\"4\"", archive(&[("fleet/bundle.yaml", "kind: Nonsense")]));
    let gone = source();
    let server = Server::start_from(place.path(), "127.0.0.1:0", None, source(), None).await;
    server.expect("started").stop().await;
    drop(web);
    let server = Server::start_from(place.path(), "127.0.0.1:0", None, gone, None).await;
    let server = server.expect("started");
    let own = server.admit("n2", &[]).await;
    let late = Node::start(&server.place(), "n2", &own, &[]);
    late.until_in_force("E1 E2 E9").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_do_not_come_in_the_clear_from_elsewhere() {
    let place = tempfile::tempdir().expect("directory");
    let source = Source::Remote(Location {
        url: "http://192.0.2.1/bundle.tar.gz".to_owned(),
        token: None,
    });
    let server = Server::start_from(place.path(), "127.0.0.1:0", None, Some(source), None).await;
    assert!(server.is_err());
}
