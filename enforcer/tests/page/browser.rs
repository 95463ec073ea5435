//! Debian's Chromium without a screen, driven by WebDriver.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};

/// A browser with one window; closed when dropped.
pub struct Browser {
    driver: Child,
    session: String,
    _profile: tempfile::TempDir,
}

fn call(method: &str, url: &str, body: &Value) -> Value {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .new_agent();
    let answer = match method {
        "GET" => agent.get(url).call(),
        "DELETE" => agent.delete(url).call(),
        _ => agent
            .post(url)
            .content_type("application/json")
            .send(body.to_string()),
    };
    let text = answer
        .expect(url)
        .body_mut()
        .read_to_string()
        .expect("text");
    let answer: Value = serde_json::from_str(&text).expect(&text);
    assert!(answer["value"]["error"].is_null(), "{url}: {text}");
    answer["value"].clone()
}

impl Browser {
    pub fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|it| it.local_addr())
            .expect("a port")
            .port();
        let profile = tempfile::tempdir().expect("directory");
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is not here; `cargo xtask setup --tests` installs it");
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "chromedriver does not start"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut browser = Self {
            driver,
            session: format!("http://127.0.0.1:{port}/session"),
            _profile: profile,
        };
        let args = [
            "--headless=new",
            // Tests run as root, in containers too.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--window-size=1360,1500",
        ];
        let options =
            json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": args}}}});
        let session = call("POST", &browser.session, &options);
        browser.session = format!(
            "{}/{}",
            browser.session,
            session["sessionId"].as_str().expect("a session")
        );
        browser
    }

    pub fn open(&self, url: &str) {
        // What differs after `#` alone would not be loaded anew.
        for url in ["about:blank", url] {
            call(
                "POST",
                &format!("{}/url", self.session),
                &json!({"url": url}),
            );
        }
    }

    /// The value of a function's body.
    pub fn run(&self, script: &str) -> Value {
        let body = json!({"script": script, "args": []});
        call("POST", &format!("{}/execute/sync", self.session), &body)
    }

    /// Waits until that is true.
    pub fn until(&self, script: &str) {
        let start = Instant::now();
        while self.run(&format!("return !!({script})")) != true {
            let page = self.run("return document.body.innerText");
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "not so: {script}\n{}",
                page.as_str().unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The visible text of what a selector finds first.
    pub fn text(&self, selector: &str) -> String {
        let found = self.run(&format!(
            "return document.querySelector({selector:?}).innerText"
        ));
        found.as_str().expect(selector).to_owned()
    }

    /// Clicks as a person would.
    pub fn click(&self, selector: &str) {
        let element = self.find(selector);
        call(
            "POST",
            &format!("{}/element/{element}/click", self.session),
            &json!({}),
        );
    }

    /// Types as a person would.
    pub fn type_into(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        call(
            "POST",
            &format!("{}/element/{element}/value", self.session),
            &json!({"text": text}),
        );
    }

    fn find(&self, selector: &str) -> String {
        let body = json!({"using": "css selector", "value": selector});
        let found = call("POST", &format!("{}/element", self.session), &body);
        let id = found
            .as_object()
            .and_then(|it| it.values().next())
            .and_then(Value::as_str);
        id.expect(selector).to_owned()
    }

    /// What the window shows, as PNG.
    pub fn picture(&self) -> Vec<u8> {
        let picture = call("GET", &format!("{}/screenshot", self.session), &Value::Null);
        let engine = base64::engine::general_purpose::STANDARD;
        engine
            .decode(picture.as_str().expect("a picture"))
            .expect("base64")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = std::panic::catch_unwind(|| call("DELETE", &self.session, &Value::Null));
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
