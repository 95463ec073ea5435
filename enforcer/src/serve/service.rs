//! The calls.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use enforcer_governance::journal::Reader;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::contract::enforcer_server::Enforcer;
use super::contract::explain_request::Who;
use super::contract::{
    CredentialsRequest, CredentialsResponse, EntitlementsRequest, EntitlementsResponse,
    EventsRequest, EventsResponse, ExplainRequest, ExplainResponse, FindingsRequest,
    FindingsResponse, HoldersRequest, HoldersResponse, SetModeRequest, SetModeResponse,
    StatusRequest, StatusResponse, UsageRequest, UsageResponse, WorkloadsRequest,
    WorkloadsResponse,
};
use super::values::structure;
use super::{Around, Question, events};
use crate::bundle::Mode;
use crate::engine::Engine;
use crate::explain::Ask;
use crate::usage::Thresholds;
use jiff::SignedDuration;

/// Of records that wait for one subscriber.
const WAITING: usize = 64;

/// What who asks may ask.
#[derive(Clone)]
pub(super) enum Allowed {
    Everything,
    /// Everything that changes nothing, for those with a certificate for one of these names.
    Looking(Arc<[String]>),
}

pub(super) struct Service {
    asking: mpsc::Sender<Question>,
    reader: Reader,
    allowed: Allowed,
}

impl Service {
    pub fn new(asking: mpsc::Sender<Question>, reader: Reader, allowed: Allowed) -> Self {
        Self {
            asking,
            reader,
            allowed,
        }
    }

    /// What of a request may be asked.
    fn admit<T>(&self, request: Request<T>) -> Result<T, Status> {
        if let Allowed::Looking(names) = &self.allowed {
            let certificates = request.peer_certs().unwrap_or_default();
            let own = certificates
                .first()
                .map(|it| names_of(it))
                .unwrap_or_default();
            if !own.iter().any(|name| names.contains(name)) {
                return Err(Status::permission_denied(format!(
                    "this certificate is for {}; none of them is in --allow-client",
                    own.join(", ")
                )));
            }
        }
        Ok(request.into_inner())
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Engine, Around) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        let question: Question = Box::new(move |engine, around| {
            let _ = answer.send(question(engine, around));
        });
        let gone = || Status::unavailable("the daemon is stopping");
        self.asking.send(question).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

/// The common name and the alternative names of a certificate.
fn names_of(certificate: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let common = certificate.subject().iter_common_name();
    let mut names: Vec<String> = common
        .filter_map(|it| it.as_str().ok().map(str::to_owned))
        .collect();
    if let Ok(Some(more)) = certificate.subject_alternative_name() {
        names.extend(more.value.general_names.iter().filter_map(|it| match it {
            GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
            _ => None,
        }));
    }
    names
}

/// The answer, or what is said instead of one.
fn found<T>(answer: Result<T, String>) -> Result<T, Status> {
    answer.map_err(Status::failed_precondition)
}

#[tonic::async_trait]
impl Enforcer for Service {
    type EventsStream = ReceiverStream<Result<EventsResponse, Status>>;

    async fn events(
        &self,
        request: Request<EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let request = self.admit(request)?;
        let (to, stream) = mpsc::channel(WAITING);
        tokio::spawn(events::stream(self.reader.clone(), request, to));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let request = self.admit(request)?;
        let status = self
            .ask(move |engine, around| match request.tables {
                true => engine.tables(),
                false => super::status(engine, around),
            })
            .await?;
        Ok(Response::new(StatusResponse {
            status: Some(structure(status)),
        }))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let ask = ask(self.admit(request)?).map_err(Status::invalid_argument)?;
        let answer = self.ask(move |engine, _| engine.explain_to(&ask)).await?;
        Ok(Response::new(ExplainResponse {
            answer: Some(structure(answer)),
        }))
    }

    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        self.admit(request)?;
        let credentials = found(self.ask(|engine, _| engine.credentials()).await?)?;
        Ok(Response::new(CredentialsResponse { credentials }))
    }

    async fn workloads(
        &self,
        request: Request<WorkloadsRequest>,
    ) -> Result<Response<WorkloadsResponse>, Status> {
        self.admit(request)?;
        let workloads = found(self.ask(|engine, _| engine.workloads()).await?)?;
        Ok(Response::new(WorkloadsResponse { workloads }))
    }

    async fn entitlements(
        &self,
        request: Request<EntitlementsRequest>,
    ) -> Result<Response<EntitlementsResponse>, Status> {
        self.admit(request)?;
        let entitlements = found(self.ask(|engine, _| engine.entitlements()).await?)?;
        Ok(Response::new(EntitlementsResponse { entitlements }))
    }

    async fn holders(
        &self,
        request: Request<HoldersRequest>,
    ) -> Result<Response<HoldersResponse>, Status> {
        self.admit(request)?;
        let holders = found(self.ask(|engine, _| engine.holders()).await?)?;
        Ok(Response::new(HoldersResponse { holders }))
    }

    async fn usage(
        &self,
        request: Request<UsageRequest>,
    ) -> Result<Response<UsageResponse>, Status> {
        let request = self.admit(request)?;
        let usage = self.ask(move |engine, _| match request.ledger {
            true => engine.ledger(),
            false => engine.usage(),
        });
        Ok(Response::new(UsageResponse {
            usage: Some(structure(usage.await?)),
        }))
    }

    async fn findings(
        &self,
        request: Request<FindingsRequest>,
    ) -> Result<Response<FindingsResponse>, Status> {
        let thresholds = thresholds(&self.admit(request)?).map_err(Status::invalid_argument)?;
        let findings = self.ask(move |engine, _| engine.findings(&thresholds));
        Ok(Response::new(FindingsResponse {
            findings: Some(structure(findings.await?)),
        }))
    }

    async fn set_mode(
        &self,
        request: Request<SetModeRequest>,
    ) -> Result<Response<SetModeResponse>, Status> {
        let request = self.admit(request)?;
        if let Allowed::Looking(_) = self.allowed {
            return Err(Status::permission_denied(
                "only on the node's unix socket: this connection may look, and change nothing",
            ));
        }
        let mode = match request.mode.as_str() {
            "monitor" => Mode::Monitor,
            "enforce" => Mode::Enforce,
            other => {
                return Err(Status::invalid_argument(format!(
                    "mode `{other}`: expected monitor or enforce"
                )));
            }
        };
        let set = self.ask(move |engine, _| engine.set_mode(mode, request.reason));
        found(set.await?)?;
        // The tables have followed by the time that the next question is answered.
        let (requested, effective) = found(self.ask(|engine, _| engine.mode()).await?)?;
        Ok(Response::new(SetModeResponse {
            requested: requested.to_owned(),
            effective: effective.to_owned(),
        }))
    }
}

fn thresholds(request: &FindingsRequest) -> Result<Thresholds, String> {
    let days = |days: u32| SignedDuration::from_hours(24 * i64::from(days));
    let hour = |it: u32| match u8::try_from(it) {
        Ok(hour) if hour <= 24 => Ok(hour),
        _ => Err(format!("hour {it}: expected 0 to 24")),
    };
    let hours = request.hours.as_ref();
    let hours = hours.map(|it| Ok::<_, String>((hour(it.from)?, hour(it.to)?)));
    Ok(Thresholds {
        unused: days(request.unused_days),
        secret_age: days(request.secret_days),
        fan_out: request.fan_out as usize,
        hours: hours.transpose()?,
    })
}

fn ask(request: ExplainRequest) -> Result<Ask, String> {
    let mut ask = Ask {
        pid: None,
        executable: None,
        uid: None,
        cgroup: None,
        container: None,
        ancestors: Vec::new(),
        interactive: false,
        credential: request.credential,
        destination: None,
        protocol: request.protocol,
    };
    if !request.destination.is_empty() {
        let to: SocketAddr = request.destination.parse().map_err(|_| {
            format!(
                "destination `{}`: expected ADDRESS:PORT",
                request.destination
            )
        })?;
        ask.destination = Some(to);
    }
    let some = |text: String| (!text.is_empty()).then_some(text);
    match request.who {
        None => {
            return Err("nobody is named: expected a pid, or an executable and so on".to_owned());
        }
        Some(Who::Pid(pid)) => ask.pid = Some(pid),
        Some(Who::Someone(someone)) => {
            ask.executable = some(someone.executable).map(PathBuf::from);
            ask.uid = someone.uid;
            ask.cgroup = some(someone.cgroup);
            ask.container = some(someone.container);
            ask.ancestors = someone.ancestors.into_iter().map(PathBuf::from).collect();
            ask.interactive = someone.interactive;
        }
    }
    Ok(ask)
}
