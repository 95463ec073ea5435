//! Syslog by TLS, and whom it trusts.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use super::{Log, key, until};

/// Takes connections, and hands on the messages that come by octet counting.
fn serve(config: Arc<ServerConfig>, messages: mpsc::Sender<String>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let session = ServerConnection::new(Arc::clone(&config)).expect("session");
            let mut reader = BufReader::new(StreamOwned::new(session, stream.expect("stream")));
            loop {
                let mut length = Vec::new();
                if reader.read_until(b' ', &mut length).is_err() || length.pop() != Some(b' ') {
                    break;
                }
                let length = String::from_utf8(length)
                    .expect("text")
                    .parse()
                    .expect("a length");
                let mut message = vec![0; length];
                reader.read_exact(&mut message).expect("a message");
                messages
                    .send(String::from_utf8(message).expect("text"))
                    .expect("sent");
            }
        }
    });
    port
}

fn certificate() -> (Arc<ServerConfig>, String) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let certificate = params.self_signed(&key).expect("signed");
    let secret = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], secret)
        .expect("good");
    (Arc::new(config), certificate.pem())
}

#[test]
fn only_who_is_trusted_gets_records() {
    let mut log = Log::new();
    log.write(30);
    let (config, pem) = certificate();
    let (_, other) = certificate();
    let directory = tempfile::tempdir().expect("directory");
    let write = |name: &str, pem: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, pem).expect("written");
        path.display().to_string()
    };
    let (ca, stranger) = (write("ca.pem", &pem), write("stranger.pem", &other));
    let (sender, messages) = mpsc::channel();
    let port = serve(config, sender);
    let refused = log.sinks(&[&format!("a=syslog+tls://localhost:{port}#ca={stranger}")]);
    until("refused", || refused.health()[0].failures > 1);
    let error = refused.health()[0].error.clone().unwrap_or_default();
    assert!(error.contains("certificate"), "{error}");
    refused.stop(Duration::ZERO);
    assert!(messages.try_recv().is_err());
    let sinks = log.sinks(&[&format!("b=syslog+tls://localhost:{port}#ca={ca}")]);
    let keys: Vec<String> = (0..30)
        .map(|_| {
            let message = messages
                .recv_timeout(Duration::from_secs(30))
                .expect("a message");
            let record = &message[message.find(" {").expect("a record") + 1..];
            key(&serde_json::from_str::<Value>(record).expect("JSON"))
        })
        .collect();
    assert_eq!(keys, log.keys());
    sinks.stop(Duration::from_secs(5));
}
