//! For whoever runs the server, on its unix socket.

use std::sync::Arc;

use serde_json::json;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use super::ledger::{self, Committed};
use super::{Error, Shared};
use crate::contract::administration_server::Administration;
use crate::contract::{
    Done, GrantRequest, NodesRequest, NodesResponse, RevokeRequest, TokenRequest, TokenResponse,
    revoke_request,
};
use crate::statement::Target;
use crate::time::{span_from_wire, to_wire};

/// The service.
pub struct Desk(pub Arc<Shared>);

/// Who is on the other end of the socket.
fn by<T>(request: &Request<T>) -> String {
    let info = request.extensions().get::<UdsConnectInfo>();
    let uid = info.and_then(|info| Some(info.peer_cred?.uid()));
    uid.map_or_else(|| "unknown".to_owned(), |uid| format!("uid {uid}"))
}

fn asked(by: String, reason: String, ticket: String) -> ledger::Request {
    ledger::Request {
        by,
        reason,
        ticket: Some(ticket).filter(|ticket| !ticket.trim().is_empty()),
    }
}

fn done(committed: Result<Committed, Error>) -> Result<Response<Done>, Status> {
    let committed = committed.map_err(status)?;
    Ok(Response::new(Done {
        bundle_version: committed.version,
        revocation_sequence: committed.sequence,
        committed_at: Some(to_wire(committed.at)),
    }))
}

fn status(error: Error) -> Status {
    match error {
        Error::Refused(reason) => Status::failed_precondition(reason),
        other => Status::internal(other.chain()),
    }
}

#[allow(clippy::result_large_err)]
fn target(request: &RevokeRequest) -> Result<Target, Status> {
    Ok(match &request.target {
        Some(revoke_request::Target::Entitlement(id)) => Target::Entitlement(id.clone()),
        Some(revoke_request::Target::Credential(id)) => Target::Credential(id.clone()),
        Some(revoke_request::Target::Workload(id)) => Target::Workload(id.clone()),
        None => return Err(Status::invalid_argument("nothing to revoke was named")),
    })
}

#[tonic::async_trait]
impl Administration for Desk {
    async fn grant(&self, request: Request<GrantRequest>) -> Result<Response<Done>, Status> {
        let by = by(&request);
        let request = request.into_inner();
        let duration = request.duration.as_ref().map(span_from_wire);
        let asked = asked(by, request.reason, request.ticket);
        let ledger = &self.0.ledger;
        let duration = duration.unwrap_or_default();
        done(ledger.grant(&request.entitlement, duration, &asked).await)
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<Done>, Status> {
        let by = by(&request);
        let request = request.into_inner();
        let target = target(&request)?;
        let asked = asked(by, request.reason, request.ticket);
        done(self.0.ledger.revoke(&[target], &asked).await)
    }

    async fn restore(&self, request: Request<RevokeRequest>) -> Result<Response<Done>, Status> {
        let by = by(&request);
        let request = request.into_inner();
        let target = target(&request)?;
        let asked = asked(by, request.reason, request.ticket);
        done(self.0.ledger.restore(&target, &asked).await)
    }

    async fn token(
        &self,
        request: Request<TokenRequest>,
    ) -> Result<Response<TokenResponse>, Status> {
        let by = by(&request);
        let request = request.into_inner();
        let valid = request.valid_for.as_ref().map(span_from_wire);
        let labels = request.labels.clone().into_iter().collect();
        let token = self
            .0
            .registry
            .token(&request.node, labels, valid.unwrap_or_default())
            .await
            .map_err(status)?;
        self.0
            .ledger
            .audit(
                "token",
                &json!({"by": by, "node": request.node, "labels": request.labels}),
            )
            .await
            .map_err(status)?;
        Ok(Response::new(TokenResponse { token }))
    }

    async fn nodes(&self, _: Request<NodesRequest>) -> Result<Response<NodesResponse>, Status> {
        let committed = self.0.ledger.committed();
        Ok(Response::new(NodesResponse {
            nodes: self.0.registry.nodes().await.map_err(status)?,
            bundle_version: committed.version,
            revocation_sequence: committed.sequence,
        }))
    }
}
