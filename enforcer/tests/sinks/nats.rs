//! A real JetStream.

use std::process::Command;
use std::time::Duration;

use async_nats::jetstream;
use serde_json::Value;

use super::programs::{Running, find, free_port};
use super::{Log, key, until};

fn bus(port: u16, directory: &std::path::Path) -> Running {
    let mut command = Command::new(find("nats-server"));
    command
        .args([
            "--addr",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--jetstream",
            "--store_dir",
        ])
        .arg(directory);
    Running::start(command, port, &directory.join("log"))
}

/// The keys of all messages, in order.
async fn keys(port: u16) -> Vec<String> {
    let client = async_nats::connect(format!("nats://127.0.0.1:{port}"))
        .await
        .expect("connected");
    let stream = jetstream::new(client)
        .get_stream("EVENTS")
        .await
        .expect("a stream");
    let last = stream.get_info().await.expect("asked").state.last_sequence;
    let mut keys = Vec::new();
    for number in 1..=last {
        let message = stream.get_raw_message(number).await.expect("a message");
        let record: Value = serde_json::from_slice(&message.payload).expect("JSON");
        assert_eq!(message.subject.as_str(), "enforcer.events");
        keys.push(key(&record));
    }
    keys
}

#[test]
fn a_stream_keeps_each_record_once_whoever_sends_it_again() {
    let mut log = Log::new();
    log.write(150);
    let directory = tempfile::tempdir().expect("directory");
    let port = free_port();
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let server = bus(port, directory.path());
    let url = format!("nats://127.0.0.1:{port}/enforcer/events");
    let sinks = log.sinks(&[&format!("bus={url}")]);
    // Nobody takes the subject yet: nothing is delivered to nobody.
    until("no stream", || sinks.health()[0].failures > 0);
    assert_eq!(sinks.health()[0].delivered, 0);
    runtime.block_on(async {
        let client = async_nats::connect(format!("nats://127.0.0.1:{port}"))
            .await
            .expect("connected");
        let config = jetstream::stream::Config {
            name: "EVENTS".to_owned(),
            subjects: vec!["enforcer.>".to_owned()],
            ..Default::default()
        };
        jetstream::new(client)
            .create_stream(config)
            .await
            .expect("made");
    });
    until("delivered", || sinks.health()[0].delivered == 150);
    // The server is away while more is written.
    drop(server);
    log.write(80);
    until("away", || sinks.health()[0].failures > 0);
    let _server = bus(port, directory.path());
    until("delivered", || sinks.health()[0].delivered == 230);
    sinks.stop(Duration::from_secs(5));
    // Another cursor sends all of it once more.
    let again = log.sinks(&[&format!("again={url}")]);
    until("delivered", || again.health()[0].delivered == 230);
    again.stop(Duration::from_secs(5));
    assert_eq!(runtime.block_on(keys(port)), log.keys());
}
