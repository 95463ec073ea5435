//! The page as a person uses it, in a real browser.
//!
//! `PICTURES=DIRECTORY` keeps what the browser showed.

mod browser;

use std::net::TcpListener;
use std::time::Duration;

use enforcer::view::page::{self, Document};
use enforcer_governance::journal::{Journal, Limits};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use browser::Browser;

/// What a node of the sample bundle says.
fn document(which: Document) -> Value {
    match which {
        Document::Status => json!({
            "state": "enforcing/lsm", "tier": "lsm", "stale": false, "files": 12,
            "bundle": {"issuer": "iga.example.com", "version": 42}, "lost": {"denials": 0, "uses": 3},
            "notCovered": ["a", "b"], "sinks": [{"name": "siem", "behind": 0, "error": null}],
        }),
        Document::Usage => json!({"entitlements": [{
            "id": "ENT-1042", "credential": "stripe-api-key", "workload": "billing", "inForce": true,
            "approver": "payments-lead@example.com", "ticket": "GOV-881", "reviewBy": "2026-01-15",
            "used": {"count": 118, "first": "2026-11-20T08:00:00Z", "last": "2026-11-26T09:14:59Z"}, "denied": null,
            "by": [{"executable": "/app/billing", "uid": 1000, "place": "payments/billing/app", "verdict": "allow", "count": 118,
                "first": "2026-11-20T08:00:00Z", "last": "2026-11-26T09:14:59Z"}],
            "destinations": [{"address": "192.0.2.7", "host": "api.stripe.com", "port": 443, "protocol": "tcp",
                "verdict": "allow", "count": 118, "first": "2026-11-20T08:00:00Z", "last": "2026-11-26T09:14:59Z"}],
        }]}),
        Document::Findings => json!({"undecided": null, "findings": [{
            "kind": "review-overdue", "severity": "medium", "owasp": "NHI1:2025", "nist": "PR.AA-05",
            "entitlement": "ENT-1042", "message": "ENT-1042 was to be reviewed by 2026-01-15",
            "evidence": ["used 118 times since"],
        }]}),
    }
}

struct Node {
    journal: Journal,
    _directory: tempfile::TempDir,
    /// With the token.
    url: String,
}

impl Node {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let limits = Limits {
            bytes: u64::MAX,
            age: Duration::MAX,
            keep_for: None,
        };
        let mut journal = Journal::new(directory.path(), limits);
        let records = include_str!("../shapes/golden/records.jsonl");
        for line in records.lines() {
            let mut record: Value = serde_json::from_str(line).expect("a record");
            let fields = record.as_object_mut().expect("an object");
            // The journal has its own.
            for name in ["epoch", "sequence", "previous", "hash"] {
                fields.remove(name);
            }
            journal.append(&record).expect("appended");
        }
        journal.commit().expect("on disk");
        let listener = page::bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let file = directory.path().join("page");
        let token = page::invite(&listener, &file).expect("written");
        let (ask, mut asked) = mpsc::channel::<(Document, tokio::sync::oneshot::Sender<Value>)>(4);
        std::thread::spawn(move || {
            while let Some((which, answer)) = asked.blocking_recv() {
                let _ = answer.send(document(which));
            }
        });
        page::start(listener, journal.reader(), ask, &token).expect("started");
        let url = std::fs::read_to_string(&file).expect("read");
        assert!(url.trim().ends_with(&format!("/#{token}")), "{url}");
        Self {
            journal,
            _directory: directory,
            url: url.trim().to_owned(),
        }
    }

    fn deny(&mut self, exe: &str) {
        let record = json!({
            "time": "2026-11-26T10:00:00Z", "node": "n1", "kind": "reach", "verdict": "deny", "reason": "outside-destination",
            "mode": {"requested": "enforce", "effective": "enforce"}, "action": {"requested": "kill", "taken": "kill"},
            "credential": "stripe-api-key", "workload": "billing", "process": {"pid": 77, "exe": exe},
            "destination": {"address": "198.51.100.4", "port": 8443, "protocol": "tcp", "host": null},
        });
        self.journal.append(&record).expect("appended");
        self.journal.commit().expect("on disk");
    }

    fn address(&self) -> &str {
        self.url.split("/#").next().expect("an address")
    }
}

fn keep(browser: &Browser, name: &str) {
    if let Some(directory) = std::env::var_os("PICTURES") {
        let path = std::path::Path::new(&directory).join(name);
        std::fs::write(path, browser.picture()).expect("written");
    }
}

#[test]
fn a_person_finds_out_what_was_denied_why_and_who_approved_what_exists() {
    let mut node = Node::start();
    let browser = Browser::start();
    browser.open(&node.url);
    browser.until("document.body.dataset.ready");
    let health = browser.text("#health");
    assert!(
        health.contains("enforcing/lsm") && health.contains("iga.example.com 42"),
        "{health}"
    );
    assert!(
        browser
            .text("#decisions")
            .contains("ENT-1042 covers api.stripe.com port 443, not 203.0.113.9 port 443")
    );

    // What happens now is there at once, and what a program calls itself is only text.
    node.deny("/tmp/<img src=x onerror=document.title='owned'>");
    browser.until(
        "document.querySelector('#decisions tbody tr').innerText.includes('198.51.100.4:8443')",
    );
    assert!(browser.text("#decisions tbody tr").contains("<img src=x"));
    assert_eq!(
        browser.run("return document.querySelectorAll('img').length"),
        0
    );
    assert_eq!(browser.run("return document.title"), "enforcer");

    let rows = || browser.run("return document.querySelectorAll('#decisions tbody tr').length");
    let all = rows().as_u64().expect("a number");
    browser.click("#filters [name=allowed]");
    assert!(rows().as_u64().expect("a number") < all);
    browser.type_into("#filters [name=text]", "curl");
    assert_eq!(rows(), 1);
    assert!(
        browser
            .text("#decisions tbody")
            .contains("outside-destination")
    );

    // The matrix has been asked for again by now, or will be.
    browser.until("document.querySelector('#matrix button.bad')");
    keep(&browser, "page-filtered.png");
    browser.until(
        "[...document.querySelectorAll('#matrix tbody tr')].some((row) => \
         row.innerText.startsWith('billing') && row.innerText.includes('3 denied'))",
    );
    browser.run(
        "[...document.querySelectorAll('#matrix tbody tr')].find((row) => row.innerText.startsWith('billing'))\
         .querySelector('button').click()",
    );
    let cell = browser.text("#cell");
    assert!(
        cell.contains("198.51.100.4:8443: once") && cell.contains("api.stripe.com"),
        "{cell}"
    );

    assert!(
        browser
            .text("#findings")
            .contains("review-overdue: ENT-1042 was to be reviewed")
    );
    browser.click("#entitlements summary");
    let entitlement = browser.text("#entitlements");
    for expected in [
        "payments-lead@example.com",
        "GOV-881",
        "2026-01-15",
        "/app/billing",
        "api.stripe.com (192.0.2.7) port 443",
        "118 times",
    ] {
        assert!(
            entitlement.contains(expected),
            "no {expected} in {entitlement}"
        );
    }
    browser.run("document.querySelector('#filters').reset(); document.querySelector('#filters').dispatchEvent(new Event('input'))");
    keep(&browser, "page.png");
}

#[test]
fn without_the_token_or_by_another_name_nothing_is_told() {
    let node = Node::start();
    let browser = Browser::start();
    browser.open(&format!(
        "{}/#00000000000000000000000000000000",
        node.address()
    ));
    browser.until("!document.querySelector('#trouble').hidden");
    assert!(browser.text("#trouble").contains("enforcer page"));
    assert!(!browser.text("body").contains("stripe"));
    // Nothing from elsewhere is run or asked, whatever gets into the page.
    let script = "const it = document.createElement('script'); it.textContent = 'document.title = \"owned\"'; document.body.append(it)";
    browser.run(script);
    assert_eq!(browser.run("return document.title"), "enforcer");

    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .new_agent();
    let status = |path: &str, host: Option<&str>, token: Option<&str>| {
        let mut request = agent.get(format!("{}{path}", node.address()));
        if let Some(host) = host {
            request = request.header("host", host);
        }
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.call().expect("answered").status().as_u16()
    };
    let token = node.url.split("/#").nth(1).expect("a token");
    for path in [
        "/api/board",
        "/api/events",
        "/api/status",
        "/api/usage",
        "/api/findings",
    ] {
        assert_eq!(status(path, None, None), 401, "{path}");
        assert_eq!(status(path, None, Some("wrong")), 401, "{path}");
    }
    assert_eq!(status("/api/board", None, Some(token)), 200);
    assert_eq!(status("/api/nothing", None, Some(token)), 404);
    assert_eq!(status("/", Some("evil.example:80"), None), 421);
    assert_eq!(
        status("/api/board", Some("evil.example:80"), Some(token)),
        421
    );
}

#[test]
fn it_is_served_on_loopback_only() {
    for address in ["0.0.0.0:0", "192.0.2.1:80", "[::]:0"] {
        let error = page::bind(address.parse().expect("an address")).expect_err(address);
        assert!(error.to_string().contains("loopback"), "{error}");
    }
    let taken: TcpListener = page::bind("127.0.0.1:0".parse().expect("an address")).expect("free");
    page::bind(taken.local_addr().expect("an address")).expect_err("taken");
}
