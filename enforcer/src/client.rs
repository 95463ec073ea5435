//! Asking the running daemon.

use std::future::Future;
use std::path::Path;

use crate::serve::contract::enforcer_client::EnforcerClient;
use crate::serve::contract::{
    ExplainRequest, FindingsRequest, SetModeRequest, SetModeResponse, StatusRequest, UsageRequest,
};
use crate::serve::value;
use serde_json::Value;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// A record of this size is never written, nor a list.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Speaks to it.
pub type Client = EnforcerClient<Channel>;

/// Connects to the daemon behind this socket, and has it answer.
///
/// # Errors
/// What the daemon said, or why it cannot be asked.
pub fn ask<T, F: Future<Output = Result<T, Status>>>(
    socket: &Path,
    question: impl FnOnce(Client) -> F,
) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let client = connect(socket).await?;
        question(client)
            .await
            .map_err(|status| status.message().to_owned())
    })
}

async fn connect(socket: &Path) -> Result<Client, String> {
    let failed = |error: &dyn std::error::Error| {
        format!(
            "{}: {}; is `enforcer run` running?",
            socket.display(),
            crate::chain(error)
        )
    };
    let path = std::path::absolute(socket).map_err(|error| failed(&error))?;
    let channel = Endpoint::from_shared(format!("unix:{}", path.display()))
        .map_err(|error| failed(&error))?
        .connect()
        .await
        .map_err(|error| failed(&error))?;
    Ok(EnforcerClient::new(channel).max_decoding_message_size(MOST_BYTES))
}

/// How things are.
///
/// # Errors
/// As [`ask`].
pub fn status(socket: &Path) -> Result<Value, String> {
    status_or_tables(socket, false)
}

/// How many entries the kernel's tables have.
///
/// # Errors
/// As [`ask`].
pub fn tables(socket: &Path) -> Result<Value, String> {
    status_or_tables(socket, true)
}

fn status_or_tables(socket: &Path, tables: bool) -> Result<Value, String> {
    let answer = ask(socket, async move |mut client: Client| {
        client.status(StatusRequest { tables }).await
    })?;
    no_error(value(answer.into_inner().status.unwrap_or_default()))
}

/// What would be decided.
///
/// # Errors
/// As [`ask`].
pub fn explain(socket: &Path, request: ExplainRequest) -> Result<Value, String> {
    let answer = ask(socket, async move |mut client: Client| {
        client.explain(request).await
    })?;
    no_error(value(answer.into_inner().answer.unwrap_or_default()))
}

/// What each entitlement and credential was used for.
///
/// # Errors
/// As [`ask`].
pub fn usage(socket: &Path) -> Result<Value, String> {
    usage_or_ledger(socket, false)
}

/// The ledger behind that, as it is on disk.
///
/// # Errors
/// As [`ask`].
pub fn ledger(socket: &Path) -> Result<Value, String> {
    usage_or_ledger(socket, true)
}

fn usage_or_ledger(socket: &Path, ledger: bool) -> Result<Value, String> {
    let answer = ask(socket, async move |mut client: Client| {
        client.usage(UsageRequest { ledger }).await
    })?;
    no_error(value(answer.into_inner().usage.unwrap_or_default()))
}

/// What somebody should look at.
///
/// # Errors
/// As [`ask`].
pub fn findings(socket: &Path, request: FindingsRequest) -> Result<Value, String> {
    let answer = ask(socket, async move |mut client: Client| {
        client.findings(request).await
    })?;
    no_error(value(answer.into_inner().findings.unwrap_or_default()))
}

/// Sets whether denials take effect.
///
/// # Errors
/// As [`ask`].
pub fn set_mode(socket: &Path, mode: &str, reason: String) -> Result<SetModeResponse, String> {
    let request = SetModeRequest {
        mode: mode.to_owned(),
        reason,
    };
    let answer = ask(socket, async move |mut client: Client| {
        client.set_mode(request).await
    })?;
    Ok(answer.into_inner())
}

/// What the daemon answers, if it does not say that it cannot.
fn no_error(answer: Value) -> Result<Value, String> {
    match answer["error"].as_str() {
        Some(error) => Err(error.to_owned()),
        None => Ok(answer),
    }
}
