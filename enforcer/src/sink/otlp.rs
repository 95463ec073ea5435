//! OpenTelemetry logs over gRPC.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::place::Remote;
use super::{Failure, Outlet, Parcel};
use crate::shape::{Record, Severity};

/// How long a connection and one answer are waited for.
const WITHIN: Duration = Duration::from_secs(10);

/// The receiver, and the connection to it.
pub struct Otlp {
    remote: Remote,
    client: Option<LogsServiceClient<Channel>>,
}

impl Otlp {
    /// Connects when there is something to deliver.
    pub fn new(remote: Remote) -> Self {
        Self {
            remote,
            client: None,
        }
    }

    async fn client(&mut self) -> Result<LogsServiceClient<Channel>, String> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let endpoint = Channel::from_shared(self.remote.url.to_string());
        let mut endpoint = endpoint
            .map_err(|error| error.to_string())?
            .connect_timeout(WITHIN)
            .timeout(WITHIN);
        if self.remote.tls {
            let mut tls = ClientTlsConfig::new();
            match &self.remote.ca {
                Some(path) => {
                    let pem = std::fs::read(path)
                        .map_err(|error| format!("{}: {error}", path.display()))?;
                    tls = tls.ca_certificate(Certificate::from_pem(pem));
                }
                None => tls = tls.with_native_roots(),
            }
            endpoint = endpoint
                .tls_config(tls)
                .map_err(|error| crate::chain(&error))?;
        }
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| crate::chain(&error))?;
        let client = LogsServiceClient::new(channel);
        self.client = Some(client.clone());
        Ok(client)
    }

    fn request(&self, parcels: &[Parcel]) -> Result<Request<ExportLogsServiceRequest>, String> {
        let mut request = Request::new(export(parcels));
        if let Some(path) = &self.remote.token {
            let token = std::fs::read_to_string(path)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            let value = MetadataValue::try_from(format!("Bearer {}", token.trim()));
            let value = value.map_err(|_| format!("{}: no token", path.display()))?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }

    async fn export(&mut self, parcels: &[Parcel]) -> Result<(), Failure> {
        let mut client = self.client().await.map_err(Failure::new)?;
        let request = self.request(parcels).map_err(Failure::new)?;
        let answer = client
            .export(request)
            .await
            .map_err(|status| failure(&status))?;
        match answer.into_inner().partial_success {
            Some(partial) if partial.rejected_log_records > 0 => Err(Failure {
                refused: true,
                ..Failure::new(format_args!(
                    "{} of {} records are refused: {}",
                    partial.rejected_log_records,
                    parcels.len(),
                    partial.error_message
                ))
            }),
            _ => Ok(()),
        }
    }
}

impl Outlet for Otlp {
    async fn deliver(&mut self, parcels: &[Parcel]) -> Result<(), Failure> {
        self.export(parcels).await.map_err(|failure| {
            if !failure.refused {
                self.client = None;
            }
            Failure {
                reason: format!("{}: {}", self.remote, failure.reason),
                ..failure
            }
        })
    }
}

fn failure(status: &Status) -> Failure {
    let retry = status.get_details_retry_info();
    Failure {
        refused: status.code() == Code::InvalidArgument,
        after: retry.and_then(|it| it.retry_delay),
        ..Failure::new(format_args!("{:?}: {}", status.code(), status.message()))
    }
}

/// A batch is of one node.
fn export(parcels: &[Parcel]) -> ExportLogsServiceRequest {
    let node = parcels.first().map_or("", |it| it.key.node.as_str());
    let version = env!("CARGO_PKG_VERSION");
    let resource = Resource {
        attributes: vec![
            attribute("service.name", text("enforcer")),
            attribute("service.version", text(version)),
            attribute("host.name", text(node)),
        ],
        ..Resource::default()
    };
    let scope = InstrumentationScope {
        name: "enforcer".to_owned(),
        version: version.to_owned(),
        ..InstrumentationScope::default()
    };
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(resource),
            scope_logs: vec![ScopeLogs {
                scope: Some(scope),
                log_records: parcels.iter().map(log_record).collect(),
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
    }
}

fn log_record(parcel: &Parcel) -> LogRecord {
    let record = Record(&parcel.record);
    let severity = record.severity();
    let nanoseconds = u64::try_from(record.time().as_nanosecond()).unwrap_or(0);
    let verdict = record
        .text("verdict")
        .map(|it| format!(".{it}"))
        .unwrap_or_default();
    LogRecord {
        time_unix_nano: nanoseconds,
        observed_time_unix_nano: nanoseconds,
        severity_number: match severity {
            Severity::Informational => 9,
            Severity::Low => 10,
            Severity::Medium => 13,
            Severity::High => 17,
            Severity::Critical => 21,
        },
        severity_text: severity.name().to_owned(),
        body: Some(text(&parcel.line)),
        attributes: attributes(parcel),
        event_name: format!("enforcer.{}{verdict}", record.kind()),
        ..LogRecord::default()
    }
}

/// By the names of the semantic conventions where they have one.
fn attributes(parcel: &Parcel) -> Vec<KeyValue> {
    const TEXTS: &[(&str, &str)] = &[
        ("process.executable.path", "process.exe"),
        ("file.path", "file"),
        ("destination.address", "destination.address"),
        ("network.transport", "destination.protocol"),
        ("container.id", "instance.container.id"),
        ("k8s.namespace.name", "instance.pod.namespace"),
        ("k8s.pod.name", "instance.pod.name"),
        ("enforcer.verdict", "verdict"),
        ("enforcer.reason", "reason"),
        ("enforcer.credential", "credential"),
        ("enforcer.workload", "workload"),
        ("enforcer.entitlement", "entitlement"),
    ];
    const NUMBERS: &[(&str, &str)] = &[
        ("process.pid", "process.pid"),
        ("destination.port", "destination.port"),
        ("enforcer.bundle", "bundle"),
    ];
    let record = Record(&parcel.record);
    let mut found = vec![attribute("log.record.uid", text(&parcel.key.to_string()))];
    for (name, path) in TEXTS {
        found.extend(record.text(path).map(|it| attribute(name, text(it))));
    }
    for (name, path) in NUMBERS {
        let number = record.number(path).and_then(|it| i64::try_from(it).ok());
        found.extend(number.map(|it| attribute(name, Any::IntValue(it).into_any())));
    }
    found
}

fn attribute(key: &str, value: AnyValue) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(value),
        ..KeyValue::default()
    }
}

fn text(text: &str) -> AnyValue {
    Any::StringValue(text.to_owned()).into_any()
}

trait IntoAny {
    fn into_any(self) -> AnyValue;
}

impl IntoAny for Any {
    fn into_any(self) -> AnyValue {
        AnyValue { value: Some(self) }
    }
}
