//! A receiver of OpenTelemetry logs, made of the official protocol files.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use serde_json::Value;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Log, until};

#[derive(Clone, Default)]
struct Collector {
    requests: Arc<Mutex<u32>>,
    got: Arc<Mutex<Vec<ExportLogsServiceRequest>>>,
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let number = {
            let mut requests = self.requests.lock().expect("lock");
            *requests += 1;
            *requests
        };
        match number {
            1 => {
                let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(300)));
                return Err(Status::with_error_details(
                    Code::ResourceExhausted,
                    "enough",
                    details,
                ));
            }
            2 => return Err(Status::unavailable("not now")),
            3 => return Err(Status::unauthenticated("who are you")),
            _ => {}
        }
        self.got.lock().expect("lock").push(request.into_inner());
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

fn serve(collector: Collector) -> String {
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
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            tonic::transport::Server::builder()
                .add_service(LogsServiceServer::new(collector))
                .serve_with_incoming(incoming)
                .await
                .expect("served");
        });
    });
    format!("otlp://{address}")
}

fn text(value: &Option<AnyValue>) -> String {
    match value.as_ref().and_then(|it| it.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        other => panic!("no text: {other:?}"),
    }
}

fn attribute(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|it| it.key == name);
    text(&found.expect(name).value)
}

#[test]
fn a_collector_gets_every_record_with_its_key() {
    let mut log = Log::new();
    log.write(120);
    let collector = Collector::default();
    let url = serve(collector.clone());
    let sinks = log.sinks(&[&format!("otlp={url}#shape=ocsf")]);
    until("delivered", || sinks.health()[0].delivered == 120);
    sinks.stop(Duration::from_secs(5));
    let got = collector.got.lock().expect("lock");
    let resources = got.iter().flat_map(|it| &it.resource_logs);
    let mut keys = Vec::new();
    for resource in resources {
        let about = &resource.resource.as_ref().expect("a resource").attributes;
        assert_eq!(attribute(about, "service.name"), "enforcer");
        assert_eq!(attribute(about, "host.name"), "n1");
        for record in resource.scope_logs.iter().flat_map(|it| &it.log_records) {
            let key = attribute(&record.attributes, "log.record.uid");
            let body: Value = serde_json::from_str(&text(&record.body)).expect("JSON");
            assert_eq!(body["metadata"]["uid"], key.as_str());
            assert_eq!(body["class_uid"], 1001);
            assert_eq!(record.time_unix_nano, 1_795_684_443_120_417_233);
            let is_denied = body["is_alert"] == true;
            assert_eq!(record.severity_number, if is_denied { 17 } else { 9 });
            let verdict = if is_denied { "deny" } else { "allow" };
            assert_eq!(record.event_name, format!("enforcer.read.{verdict}"));
            keys.push(key);
        }
    }
    assert_eq!(keys, log.keys());
}
