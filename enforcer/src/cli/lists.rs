//! `enforcer credentials`, `workloads`, `entitlements` and `holders`: what is in force on this node.

use std::process::ExitCode;

use enforcer::client::{Client, ask};
use enforcer::serve::contract::{
    CredentialsRequest, EntitlementsRequest, HoldersRequest, WorkloadsRequest,
};
use serde::Serialize;

use super::{Output, Socket, failed};

/// How a list is asked for.
#[derive(clap::Args)]
pub struct ListArgs {
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    socket: Socket,
}

pub fn credentials(args: &ListArgs) -> ExitCode {
    let answer = ask(&args.socket.socket, async |mut client: Client| {
        client.credentials(CredentialsRequest {}).await
    });
    show(
        args,
        answer.map(|it| it.into_inner().credentials),
        |it| {
            [
                it.id.clone(),
                dash(&it.owner),
                it.sources.join(", "),
                dash(&it.entitlements.join(", ")),
            ]
        },
        ["CREDENTIAL", "OWNER", "SOURCES", "ENTITLEMENTS"],
    )
}

pub fn workloads(args: &ListArgs) -> ExitCode {
    let answer = ask(&args.socket.socket, async |mut client: Client| {
        client.workloads(WorkloadsRequest {}).await
    });
    show(
        args,
        answer.map(|it| it.into_inner().workloads),
        |it| {
            [
                it.id.clone(),
                it.r#match.join(", "),
                dash(&it.entitlements.join(", ")),
            ]
        },
        ["WORKLOAD", "IS", "ENTITLEMENTS"],
    )
}

pub fn entitlements(args: &ListArgs) -> ExitCode {
    let answer = ask(&args.socket.socket, async |mut client: Client| {
        client.entitlements(EntitlementsRequest {}).await
    });
    show(
        args,
        answer.map(|it| it.into_inner().entitlements),
        |it| {
            [
                it.id.clone(),
                it.state.clone(),
                it.workload.clone(),
                it.credential.clone(),
                it.mode.clone(),
                dash(&it.valid_until),
                dash(&it.approver),
                dash(&it.ticket),
                dash(&it.review_by),
                dash(&it.destinations.join(", ")),
            ]
        },
        [
            "ENTITLEMENT",
            "STATE",
            "WORKLOAD",
            "CREDENTIAL",
            "MODE",
            "UNTIL",
            "APPROVER",
            "TICKET",
            "REVIEW",
            "DESTINATIONS",
        ],
    )
}

pub fn holders(args: &ListArgs) -> ExitCode {
    let answer = ask(&args.socket.socket, async |mut client: Client| {
        client.holders(HoldersRequest {}).await
    });
    show(
        args,
        answer.map(|it| it.into_inner().holders),
        |it| {
            let who = match it.cgroup.as_str() {
                "" => format!("pid {}", it.pid),
                cgroup => cgroup.to_owned(),
            };
            let more = if it.overflowed { " and more" } else { "" };
            [
                who,
                dash(&it.executable),
                format!("{}{more}", it.credentials.join(", ")),
            ]
        },
        ["HOLDER", "EXECUTABLE", "CREDENTIALS"],
    )
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

fn show<T: Serialize, const N: usize>(
    args: &ListArgs,
    answer: Result<Vec<T>, String>,
    row: impl Fn(&T) -> [String; N],
    head: [&str; N],
) -> ExitCode {
    let list = match answer {
        Ok(list) => list,
        Err(error) => return failed(&error),
    };
    let text = match args.output {
        Output::Json => serde_json::to_string_pretty(&list).map_err(|error| error.to_string()),
        Output::Yaml => serde_saphyr::to_string(&list).map_err(|error| error.to_string()),
        Output::Text => Ok(table(head, &list.iter().map(row).collect::<Vec<_>>())),
    };
    match text {
        Ok(text) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let head = head.map(str::to_owned);
    let all = || std::iter::once(&head).chain(rows);
    let widths: Vec<usize> = (0..N)
        .map(|column| {
            all()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in all() {
        let cells: Vec<String> = (row.iter().zip(&widths))
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
