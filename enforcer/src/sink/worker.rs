//! One sink at work: reads, delivers, notes how far it came, waits.

use enforcer_governance::journal::{Batch, Cursor};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Failure, Parcel, Shared, pace};
use crate::shape::{Record, Shape};

/// About so many bytes are read at once.
const BYTES: usize = 512 * 1024;
/// How long a stopping sink still tries.
const LAST: std::time::Duration = std::time::Duration::from_secs(2);

/// Whoever takes records.
pub trait Outlet {
    /// Hands records over, in order. They are delivered once this returns without a failure.
    fn deliver(&mut self, parcels: &[Parcel]) -> impl Future<Output = Result<(), Failure>>;
}

/// What a sink takes.
#[derive(Clone, Copy, Debug)]
pub struct Take {
    /// In which shape.
    pub shape: Shape,
    /// At most so many records at once; from 1.
    pub batch: usize,
    /// Only denials, and what the daemon itself has to tell.
    pub denials: bool,
}

/// Delivers until it is stopped, and then what is left, as far as there is time.
pub async fn run(
    outlet: impl Outlet,
    cursor: Cursor,
    take: Take,
    health: &Shared,
    mut stopped: watch::Receiver<bool>,
) {
    let mut worker = Worker {
        outlet,
        cursor,
        take,
        health,
        most: take.batch,
    };
    loop {
        // A failed wait for the stop means that whoever would say so is gone.
        tokio::select! {
            biased;
            _ = stopped.wait_for(|it| *it) => break,
            () = worker.turn() => {}
        }
    }
    let deadline = Instant::now() + LAST;
    // Whatever is not delivered, the next process delivers.
    let _ = timeout_at(deadline, async {
        while worker.cursor.behind() > 0 {
            worker.turn().await;
        }
    })
    .await;
}

struct Worker<'a, O> {
    outlet: O,
    cursor: Cursor,
    take: Take,
    health: &'a Shared,
    /// At most so many at once, until the receiver has taken as many.
    most: usize,
}

impl<O: Outlet> Worker<'_, O> {
    /// Waits for records and delivers some, or waits after a failure. May be cut off at any await: the cursor on disk
    /// is behind what is delivered, never before it.
    async fn turn(&mut self) {
        self.cursor.wait().await;
        let from = self.cursor.last() + 1;
        let batch = match self.cursor.read(self.most, BYTES) {
            Ok(batch) => batch,
            Err(error) => {
                self.cursor.seek(from);
                return self
                    .failed(Failure::new(format_args!("cannot read the log: {error}")))
                    .await;
            }
        };
        // Cut off below, it is read again.
        self.cursor.seek(batch.first);
        self.health.change(|it| {
            it.missed += batch.missed;
            it.through = batch.first.saturating_sub(1);
        });
        if batch.lines.is_empty() {
            let reason = format!("record {} of the log is not to be found", batch.first);
            return self.failed(Failure::new(reason)).await;
        }
        let (parcels, numbers) = self.parcels(&batch);
        let result = match parcels.is_empty() {
            true => Ok(()),
            false => self.outlet.deliver(&parcels).await,
        };
        match result {
            Ok(()) => {
                self.settle(batch.last(), parcels.len());
                self.most = (self.most * 2).min(self.take.batch);
            }
            Err(failure) => self.part(&batch, &numbers, failure).await,
        }
    }

    /// What of a batch is for this sink, and the numbers of those.
    fn parcels(&self, batch: &Batch) -> (Vec<Parcel>, Vec<u64>) {
        let mut parcels = Vec::new();
        let mut numbers = Vec::new();
        for (number, line) in (batch.first..).zip(&batch.lines) {
            let Some(parcel) = Parcel::new(line, self.take.shape) else {
                // Somebody wrote into the log; `log verify` says what.
                continue;
            };
            let record = Record(&parcel.record);
            if !self.take.denials || !record.is_decision() || record.is_denied() {
                parcels.push(parcel);
                numbers.push(number);
            }
        }
        (parcels, numbers)
    }

    /// Some of the batch is delivered, and something is wrong with the next.
    async fn part(&mut self, batch: &Batch, numbers: &[u64], failure: Failure) {
        let delivered = failure.delivered.min(numbers.len());
        // What lies between two of its records is not for this sink.
        let through = match numbers.get(delivered) {
            Some(next) => next - 1,
            None => batch.last(),
        };
        if through >= batch.first {
            self.settle(through, delivered);
        }
        if failure.refused && numbers.len() - delivered > 1 {
            // Which of them it is shows when they come one by one.
            self.most = 1.max(self.most / 2);
            return;
        }
        if failure.refused {
            tracing::warn!(
                sink = self.health.now().name,
                reason = failure.reason,
                "a record is refused for good, and left out"
            );
            self.health.change(|it| it.refused += 1);
            self.settle(batch.last(), 0);
            return;
        }
        self.failed(failure).await;
    }

    /// Notes that everything up to here is done with.
    fn settle(&mut self, through: u64, count: usize) {
        self.cursor.seek(through + 1);
        if let Err(error) = self.cursor.acknowledge(through) {
            // What is delivered may come again after a restart, and is not lost.
            tracing::warn!(sink = self.health.now().name, %error, "it cannot be noted what is delivered");
        }
        self.health.change(|it| {
            it.failures = 0;
            it.error = None;
            it.through = through;
        });
        if count > 0 {
            self.health.delivered(count);
        }
    }

    async fn failed(&mut self, failure: Failure) {
        let mut failures = 0;
        self.health.change(|it| {
            it.failures = it.failures.saturating_add(1);
            it.error = Some(failure.reason.clone());
            failures = it.failures;
        });
        if failures == 1 {
            tracing::warn!(
                sink = self.health.now().name,
                reason = failure.reason,
                "records cannot be delivered; they are kept and tried again"
            );
        }
        let wait = pace::wait(failures, failure.after, rand::random());
        sleep(wait).await;
    }
}
