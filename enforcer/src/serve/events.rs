//! One subscriber's stream of records: read from the log at the pace at which they are taken.

use enforcer_governance::journal::{Cursor, Reader};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::mpsc::Sender;
use tonic::Status;

use super::contract::events_request::From;
use super::contract::events_response::Event;
use super::contract::{EventsRequest, EventsResponse, Missed};
use super::filter::Filters;

/// Read at once; as many may wait for who does not take them.
const RECORDS: usize = 64;
const BYTES: usize = 256 * 1024;

type Sent = Result<EventsResponse, Status>;

/// Sends what was asked for until there is no more, or nobody takes it.
pub(super) async fn stream(reader: Reader, request: EventsRequest, to: Sender<Sent>) {
    let failed =
        |error: std::io::Error| Status::internal(format!("the log cannot be read: {error}"));
    let ended = match start(&reader, request.from.as_ref()) {
        Ok(cursor) => follow(cursor, &request, &to).await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        let _ = to.send(Err(failed(error))).await;
    }
}

fn start(reader: &Reader, from: Option<&From>) -> std::io::Result<Cursor> {
    let head = reader.head().sequence;
    Ok(match from {
        None => reader.from(head + 1),
        Some(From::Sequence(sequence)) => reader.from(*sequence),
        Some(From::Last(count)) => {
            reader.from((head + 1).saturating_sub(*count).max(reader.oldest()?))
        }
        Some(From::Since(_)) => reader.from(reader.oldest()?),
    })
}

async fn follow(
    mut cursor: Cursor,
    request: &EventsRequest,
    to: &Sender<Sent>,
) -> std::io::Result<()> {
    let filters = Filters {
        allow: request.allow.clone(),
        deny: request.deny.clone(),
    };
    let mut since = match &request.from {
        Some(From::Since(at)) => Timestamp::new(at.seconds, at.nanos).ok(),
        _ => None,
    };
    loop {
        if cursor.behind() == 0 {
            if !request.follow {
                return Ok(());
            }
            tokio::select! {
                () = cursor.wait() => {}
                () = to.closed() => return Ok(()),
            }
        }
        let batch = cursor.read(RECORDS, BYTES)?;
        if batch.missed > 0 {
            let missed = Missed {
                epoch: batch.epoch.clone(),
                first: batch.first - batch.missed,
                last: batch.first - 1,
            };
            if !send(to, Event::Missed(missed)).await {
                return Ok(());
            }
        }
        if batch.lines.is_empty() && !request.follow {
            return Ok(());
        }
        for line in batch.lines {
            let line = String::from_utf8_lossy(&line).into_owned();
            if let Some(at) = since {
                if time(&line).is_some_and(|time| time < at) {
                    continue;
                }
                since = None;
            }
            if filters.want(&line) && !send(to, Event::Record(line)).await {
                return Ok(());
            }
        }
    }
}

/// Waits until there is room. `false` if nobody listens any more.
async fn send(to: &Sender<Sent>, event: Event) -> bool {
    to.send(Ok(EventsResponse { event: Some(event) }))
        .await
        .is_ok()
}

fn time(line: &str) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct At {
        time: Timestamp,
    }
    serde_json::from_str::<At>(line).ok().map(|it| it.time)
}
