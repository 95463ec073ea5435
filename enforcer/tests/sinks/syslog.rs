//! Debian's rsyslog.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::programs::{Running, cached, find, free_port};
use super::{Log, key, records_in, until};

struct Rsyslog {
    directory: tempfile::TempDir,
    port: u16,
}

impl Rsyslog {
    fn new() -> Self {
        let it = Self {
            directory: tempfile::tempdir().expect("directory"),
            port: free_port(),
        };
        let path = |name: &str| it.directory.path().join(name).display().to_string();
        // What a message says, and of a record which host and kind it gives in its header.
        let config = format!(
            "module(load=\"imtcp\")\nmodule(load=\"imudp\")\nmodule(load=\"imuxsock\" SysSock.Use=\"off\")\n\
             global(workDirectory=\"{work}\" maxMessageSize=\"64k\")\n\
             input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\")\n\
             input(type=\"imudp\" address=\"127.0.0.1\" port=\"{port}\" rcvbufSize=\"4m\")\n\
             input(type=\"imuxsock\" Socket=\"{socket}\" UseSpecialParser=\"off\" ParseHostname=\"on\" RateLimit.Interval=\"0\")\n\
             template(name=\"message\" type=\"string\" string=\"%msg%\\n\")\n\
             template(name=\"header\" type=\"string\" string=\"%syslogfacility-text% %syslogseverity-text% %hostname% %app-name% %msgid% %timestamp:::date-rfc3339%\\n\")\n\
             action(type=\"omfile\" file=\"{messages}\" template=\"message\")\n\
             action(type=\"omfile\" file=\"{headers}\" template=\"header\")\n",
            work = it.directory.path().display(),
            port = it.port,
            socket = path("socket"),
            messages = path("messages"),
            headers = path("headers"),
        );
        std::fs::write(it.directory.path().join("rsyslog.conf"), config).expect("written");
        it
    }

    fn start(&self) -> Running {
        let directory = self.directory.path();
        let mut command = Command::new(find("rsyslogd"));
        command
            .arg("-n")
            .arg("-f")
            .arg(directory.join("rsyslog.conf"))
            .arg("-i")
            .arg(directory.join("pid"));
        let libraries = cached().join("rsyslog");
        if libraries.is_dir() {
            command
                .env("LD_LIBRARY_PATH", &libraries)
                .arg("-M")
                .arg(libraries.join("rsyslog"));
        }
        Running::start(command, self.port, &directory.join("log"))
    }

    fn messages(&self) -> Vec<String> {
        let records = records_in(&self.directory.path().join("messages"));
        records.iter().map(key).collect()
    }
}

fn line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("read");
    text.lines().next().expect("a line").to_owned()
}

#[test]
fn by_tcp_it_gets_all_also_what_came_while_it_was_away() {
    let mut log = Log::new();
    log.write(120);
    let receiver = Rsyslog::new();
    let running = receiver.start();
    let sinks = log.sinks(&[&format!(
        "siem=syslog+tcp://127.0.0.1:{}#batch=50",
        receiver.port
    )]);
    until("delivered", || receiver.messages().len() == 120);
    drop(running);
    log.write(80);
    until("away", || sinks.health()[0].failures > 0);
    let _running = receiver.start();
    until("delivered", || receiver.messages().len() >= 200);
    sinks.stop(Duration::from_secs(5));
    assert_eq!(receiver.messages(), log.keys());
    let header = line(&receiver.directory.path().join("headers"));
    assert_eq!(
        header,
        "audit err n1 enforcer read 2026-11-26T09:14:03.120417Z"
    );
}

#[test]
fn by_udp_and_by_a_unix_socket_it_gets_them_too() {
    let mut log = Log::new();
    log.write(20);
    for place in ["udp", "unix"] {
        let receiver = Rsyslog::new();
        let _running = receiver.start();
        let socket = receiver.directory.path().join("socket");
        let url = match place {
            "udp" => format!("syslog+udp://127.0.0.1:{}", receiver.port),
            _ => format!("syslog+unix://{}", socket.display()),
        };
        let sinks = log.sinks(&[&format!("{place}={url}")]);
        until(place, || receiver.messages().len() == 20);
        sinks.stop(Duration::from_secs(5));
        assert_eq!(receiver.messages(), log.keys(), "{place}");
    }
}
