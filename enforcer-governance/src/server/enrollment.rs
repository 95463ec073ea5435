//! Certificates for nodes.

use std::sync::Arc;

use serde_json::json;
use tonic::{Request, Response, Status};

use super::{Error, Shared};
use crate::contract::enrollment_server::Enrollment;
use crate::contract::{EnrollRequest, EnrollResponse};

/// The service: the only one that those without a certificate may use, for one thing.
pub struct Enroller(pub Arc<Shared>);

#[tonic::async_trait]
impl Enrollment for Enroller {
    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let known = super::node_of(&request);
        let request = request.into_inner();
        let (node, labels) = if request.token.is_empty() {
            let node = known?;
            let labels = self.0.registry.labels(&node).await;
            let labels = labels.map_err(|error| Status::unavailable(error.chain()))?;
            (node, labels.unwrap_or_default())
        } else {
            let redeemed = self.0.registry.redeem(&request.token).await;
            redeemed.map_err(|error| {
                tracing::warn!("a node was not enrolled: {}", error.chain());
                match error {
                    Error::Refused(reason) => Status::permission_denied(reason),
                    other => Status::unavailable(other.chain()),
                }
            })?
        };
        let certificate = self.0.authority.node(&node, &request.certificate_request);
        let certificate = certificate.map_err(|error| Status::invalid_argument(error.chain()))?;
        self.0
            .ledger
            .audit("enroll", &json!({"node": node, "labels": labels}))
            .await
            .map_err(|error| Status::unavailable(error.chain()))?;
        Ok(Response::new(EnrollResponse {
            certificate,
            node,
            labels: labels.into_iter().collect(),
        }))
    }
}
