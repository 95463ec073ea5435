//! Receivers that are down, slow or picky, in simulated time: the clock stands still while somebody works, and leaps
//! while everybody waits.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use enforcer::shape::Shape;
use enforcer::sink::{Failure, Outlet, Parcel, Shared, Take, run};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::Log;

const TAKE: Take = Take {
    shape: Shape::Native,
    batch: 10,
    denials: false,
};

/// What a receiver does with the next batch.
type Answer = Box<dyn FnMut(&[Parcel]) -> (Duration, Result<(), Failure>)>;

/// A receiver that keeps what it has got.
struct Receiver {
    answer: Answer,
    got: Arc<Mutex<Vec<String>>>,
    attempts: Arc<Mutex<u32>>,
}

impl Outlet for Receiver {
    async fn deliver(&mut self, parcels: &[Parcel]) -> Result<(), Failure> {
        *self.attempts.lock().expect("lock") += 1;
        let (takes, result) = (self.answer)(parcels);
        sleep(takes).await;
        let delivered = match &result {
            Ok(()) => parcels.len(),
            Err(failure) => failure.delivered,
        };
        let keys = parcels[..delivered].iter().map(|it| it.key.to_string());
        self.got.lock().expect("lock").extend(keys);
        result
    }
}

struct Outcome {
    got: Vec<String>,
    attempts: u32,
    took: Duration,
    health: enforcer::sink::Health,
}

/// Has a sink deliver everything in the log.
async fn deliver_all(log: &Log, answer: Answer) -> Outcome {
    let (got, attempts) = (Arc::default(), Arc::default());
    let receiver = Receiver {
        answer,
        got: Arc::clone(&got),
        attempts: Arc::clone(&attempts),
    };
    let health = Shared::new("patient", "test");
    let (stop, stopped) = watch::channel(false);
    let cursor = log.reader().named("sink-patient").expect("a cursor");
    let count = log.keys().len() as u64;
    let start = Instant::now();
    let worker = run(receiver, cursor, TAKE, &health, stopped);
    let watcher = async {
        loop {
            let now = health.now();
            if now.delivered + now.refused + now.missed >= count {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        stop.send_replace(true);
    };
    tokio::join!(worker, watcher);
    Outcome {
        got: got.lock().expect("lock").clone(),
        attempts: *attempts.lock().expect("lock"),
        took: start.elapsed(),
        health: health.now(),
    }
}

#[tokio::test(start_paused = true)]
async fn an_hour_without_a_receiver_loses_and_repeats_nothing() {
    let mut log = Log::new();
    log.write(500);
    let start = Instant::now();
    let answer: Answer = Box::new(move |_| {
        let is_down = start.elapsed() < Duration::from_secs(3600);
        (
            Duration::ZERO,
            if is_down {
                Err(Failure::new("down"))
            } else {
                Ok(())
            },
        )
    });
    let outcome = deliver_all(&log, answer).await;
    assert_eq!(outcome.got, log.keys());
    assert!(outcome.took >= Duration::from_secs(3600));
    assert!(
        outcome.took < Duration::from_secs(3600 + 120),
        "{:?}",
        outcome.took
    );
    // Half a minute between two attempts on the whole, and then one for each batch.
    let tries = outcome.attempts - 50;
    assert!((60..400).contains(&tries), "{tries} attempts in an hour");
    assert_eq!((outcome.health.failures, outcome.health.error), (0, None));
}

#[tokio::test(start_paused = true)]
async fn a_slow_receiver_and_one_that_takes_a_part_get_each_record_once() {
    let mut log = Log::new();
    log.write(95);
    let mut turn = 0;
    let answer: Answer = Box::new(move |_| {
        turn += 1;
        let failure = Failure {
            delivered: 3,
            after: (turn % 4 == 0).then_some(Duration::from_secs(120)),
            ..Failure::new("enough for now")
        };
        let result = if turn % 2 == 0 { Err(failure) } else { Ok(()) };
        (Duration::from_secs(30), result)
    });
    let outcome = deliver_all(&log, answer).await;
    assert_eq!(outcome.got, log.keys());
    assert!(outcome.took > Duration::from_secs(30 * 10 + 120));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_is_found_among_others_and_counted() {
    let mut log = Log::new();
    log.write(60);
    let bad = log.keys()[36].clone();
    let refuses = bad.clone();
    let answer: Answer = Box::new(move |parcels| {
        let has = parcels.iter().any(|it| it.key.to_string() == refuses);
        let failure = Failure {
            refused: true,
            ..Failure::new("no such thing")
        };
        (Duration::ZERO, if has { Err(failure) } else { Ok(()) })
    });
    let outcome = deliver_all(&log, answer).await;
    let expected: Vec<String> = log.keys().into_iter().filter(|it| *it != bad).collect();
    assert_eq!(outcome.got, expected);
    assert_eq!(outcome.health.refused, 1);
    assert_eq!(outcome.health.delivered, 59);
}

#[tokio::test(start_paused = true)]
async fn the_next_process_goes_on_where_this_one_was_cut_off() {
    let mut log = Log::new();
    log.write(200);
    let got: Arc<Mutex<Vec<String>>> = Arc::default();
    // Cut off at any moment, also in the middle of a batch that the receiver has.
    for round in 0..40 {
        let receiver = Receiver {
            answer: Box::new(|_| (Duration::from_secs(1), Ok(()))),
            got: Arc::clone(&got),
            attempts: Arc::default(),
        };
        let health = Shared::new("mortal", "test");
        let (_stop, stopped) = watch::channel(false);
        let cursor = log.reader().named("sink-mortal").expect("a cursor");
        let worker = run(receiver, cursor, TAKE, &health, stopped);
        let life = Duration::from_millis(700 + 130 * (round % 7));
        let _ = tokio::time::timeout(life, worker).await;
    }
    let mut keys = got.lock().expect("lock").clone();
    keys.dedup();
    assert_eq!(keys, log.keys());
}

#[tokio::test(start_paused = true)]
async fn what_the_log_no_longer_has_is_counted() {
    let mut log = Log::with_room(200_000);
    while log.journal.excess().is_none() {
        log.write(50);
    }
    let through = log.journal.excess().expect("too much");
    log.journal.trim(through).expect("gone");
    log.journal
        .append(&json!({"kind": "log-trimmed", "through": through}))
        .expect("appended");
    log.journal.commit().expect("on disk");
    let outcome = deliver_all(&log, Box::new(|_| (Duration::ZERO, Ok(())))).await;
    assert_eq!(outcome.health.missed, through);
    assert!(outcome.health.delivered > 0);
}
