//! The story of a stolen credential, for somebody who sees it for the first time.

use std::{
    fs,
    io::{IsTerminal as _, stdout},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;

use crate::harness::{
    ALICE, Actor, Allowed, BOB, Bundle, Cgroup, Daemon, Event, Expect, Killed, Outside, Refused,
    check, copy_program, governance::Governance, wait_for, write,
};

mod paint;

use paint::Paint;

const KEY: &str = "/etc/payments/stripe.key";
const SERVICE: &str = "/usr/bin/billing";
const UNIT: &str = "billing.service";
const READ: (&str, Expect) = ("read /etc/payments/stripe.key", Allowed);
const API: &str = "tcp 10.20.0.2:9000";
const ELSEWHERE: &str = "tcp 10.20.0.66:9000";
/// How long the entitlement lasts in the scene in which it ends.
const LASTS: SignedDuration = SignedDuration::from_secs(6);

fn text(action: &str, until: Timestamp) -> String {
    include_str!("bundle.yaml")
        .replace("ACTION", action)
        .replace("UNTIL", &format!("{until:.0}"))
}

fn bundle(action: &str, until: Timestamp) -> Bundle {
    Bundle::default().front(text(action, until))
}

/// The same, and the entitlement has to be granted.
fn on_request(until: Timestamp) -> Bundle {
    let text = text("block", until);
    Bundle::default()
        .front(text.replace("    approval:", "    activation: on-request\n    approval:"))
}

/// What all scenes are played on.
struct Stage {
    daemon: Daemon,
    outside: Outside,
    unit: Cgroup,
    paint: Paint,
    scene: usize,
    /// What came out otherwise than told.
    wrong: Vec<String>,
}

/// Tells the story. The result is whether all came out as told.
pub fn run() -> Result<bool> {
    let paint = Paint::new(stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    println!(
        "{}",
        paint.heading("A stolen credential, and a kernel that knows whose it is")
    );
    println!();
    println!("On this machine the service billing.service (program {SERVICE}) has a key in");
    println!("{KEY}. It may use it at 10.20.0.2, its API, and nowhere else.");
    println!("That is written in a bundle, which a daemon puts into the kernel:");
    println!();
    copy_program(SERVICE)?;
    write(KEY, "sk_live_0123456789\n")?;
    let tomorrow = Timestamp::now() + SignedDuration::from_hours(24);
    for line in bundle("block", tomorrow).text().lines() {
        println!("    {line}");
    }
    let mut stage = Stage {
        outside: Outside::start()?,
        daemon: Daemon::start(&bundle("block", tomorrow), &[])?,
        unit: Cgroup::unit(UNIT)?,
        paint,
        scene: 0,
        wrong: Vec::new(),
    };
    println!();
    println!("    $ enforcer run --bundle /etc/enforcer/bundle.yaml &");
    println!("    $ enforcer status --wait 60s");
    let status = crate::harness::daemon::status()?;
    println!(
        "    {}",
        paint.good(status["state"].as_str().unwrap_or("?"))
    );

    stage.normal_use()?;
    stage.theft()?;
    stage.other_paths()?;
    stage.without_a_daemon(tomorrow)?;
    stage.expiry()?;
    stage.kill(tomorrow)?;
    stage.governance(tomorrow)?;
    stage.end()
}

impl Stage {
    fn heading(&mut self, text: &str) {
        self.scene += 1;
        println!();
        println!("{}", self.paint.heading(&format!("{}. {text}", self.scene)));
    }

    /// Plays a part and notes whether it came out as told.
    fn judge(&mut self, result: Result<()>) {
        match result {
            Ok(()) => println!("    {}", self.paint.good("as it should be")),
            Err(error) => {
                println!(
                    "    {}",
                    self.paint.bad(&format!("NOT as it should be: {error:#}"))
                );
                self.wrong.push(format!("scene {}: {error:#}", self.scene));
            }
        }
    }

    /// The service does these steps.
    fn service(&mut self, steps: &[(&str, Expect)]) -> Result<()> {
        let words: Vec<_> = steps.iter().map(|(step, _)| *step).collect();
        println!("    {UNIT} $ billing {}", words.join(" "));
        let actor = Actor::new(SERVICE).within(self.unit.name()).user(ALICE);
        let before = self.outside.counts()?;
        let outcome = actor.run(words)?;
        for step in outcome.steps.iter().skip(actor.steps_before()) {
            let answer = match (step.errno, &step.sent) {
                (0, Some((_, _, bytes))) => self.paint.good(&format!("ok, {bytes} bytes sent")),
                (0, None) if step.read > 0 => self.paint.good(&format!("ok, {} bytes", step.read)),
                (0, None) => self.paint.good("ok"),
                (errno, _) => {
                    let errno = nix::errno::Errno::from_raw(errno);
                    self.paint.bad(&format!("{errno:?}: {}", errno.desc()))
                }
            };
            println!("      {:<36} {answer}", step.text);
        }
        if outcome.was_killed() {
            println!("      {}", self.paint.bad("killed by SIGKILL"));
        }
        let daemon = Some(&self.daemon);
        let skip = actor.steps_before();
        let mut result = check::compare(daemon, &mut self.outside, &before, &outcome, skip, steps);
        if steps.iter().all(|(_, expect)| matches!(expect, Allowed)) {
            let ended = outcome.status;
            let handed_on = steps.iter().any(|(step, _)| step.starts_with("exec-as"));
            if result.is_ok() && ended.success() == handed_on {
                result = Err(anyhow::anyhow!("it ended with {ended}"));
            }
        }
        let mut pids: Vec<u32> = outcome.steps.iter().map(|step| step.pid).collect();
        pids.push(outcome.pid);
        pids.dedup();
        let denial = pids.iter().rev().find_map(|pid| {
            let of = self.daemon.events.of(*pid);
            of.into_iter().rev().find(Event::is_denial)
        });
        self.show(denial);
        self.judge(result);
        Ok(())
    }

    fn show(&self, event: Option<Event>) {
        if let Some(event) = event {
            println!("      event: {}", self.paint.quiet(&sentence(&event)));
        }
    }

    /// Somebody runs a command that must be refused to read the key.
    fn refused(&mut self, command: &str) -> Result<()> {
        self.refused_before(command, |_| Ok(()))
    }

    /// The same, and this happens before it is told.
    fn refused_before(
        &mut self,
        command: &str,
        happens: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        println!("    $ {command}");
        let latest = |daemon: &Daemon| {
            daemon.events.find(|event| {
                event.is_denial() && event.0["process"]["uid"].as_u64() == Some(u64::from(BOB))
            })
        };
        let before = latest(&self.daemon).map(|event| event.0);
        let output = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::null())
            .output()
            .context("cannot run a shell")?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        for line in said.lines() {
            println!("      {}", self.paint.bad(line));
        }
        happens(self)?;
        let event = wait_for("an event", || {
            latest(&self.daemon).filter(|event| Some(&event.0) != before.as_ref())
        });
        let result = (|| {
            ensure!(!output.status.success(), "it ended well");
            ensure!(
                said.contains("Operation not permitted"),
                "that is no refusal"
            );
            ensure!(!said.contains("sk_live"), "the key was read");
            event
                .as_ref()
                .map_err(|error| anyhow::anyhow!("{error:#}"))?;
            Ok(())
        })();
        self.show(event.ok());
        self.judge(result);
        Ok(())
    }

    fn normal_use(&mut self) -> Result<()> {
        self.heading("The service reads its key and calls its API: allowed");
        self.service(&[READ, (API, Allowed)])
    }

    fn theft(&mut self) -> Result<()> {
        let outside = Refused("outside-destination");
        self.heading("Bob reads the key, and the file's permissions would let him: refused");
        println!("    $ ls -l {KEY}");
        let listing = Command::new("ls").args(["-l", KEY]).output()?;
        print!("      {}", String::from_utf8_lossy(&listing.stdout));
        self.refused(&format!("su bob -c 'cat {KEY}'"))?;
        self.heading("The service itself goes bad and sends the key elsewhere: refused");
        self.service(&[READ, (ELSEWHERE, outside)])?;
        self.heading("It lets a child do it: refused");
        self.service(&[READ, ("fork", Allowed), (ELSEWHERE, outside)])?;
        self.heading("It becomes another program, netcat, which does it: refused");
        self.service(&[READ, ("exec-as /usr/bin/nc 10.20.0.66 9000", Allowed)])
    }

    fn other_paths(&mut self) -> Result<()> {
        self.heading("A hard link, a symbolic link, a bind mount: no way round");
        let (hard, soft, bound) = ("/srv/hard", "/srv/soft", "/srv/bound");
        self.refused(&format!("ln {KEY} {hard}; su bob -c 'cat {hard}'"))?;
        self.refused(&format!("ln -s {KEY} {soft}; su bob -c 'cat {soft}'"))?;
        self.refused(&format!(
            "touch {bound}; mount --bind {KEY} {bound}; su bob -c 'cat {bound}'"
        ))?;
        Command::new("umount").arg(bound).status()?;
        for path in [hard, soft, bound] {
            fs::remove_file(path)?;
        }
        Ok(())
    }

    fn without_a_daemon(&mut self, until: Timestamp) -> Result<()> {
        self.heading("The daemon is killed: what it put into the kernel stays, and the next tells");
        println!("    $ kill -9 {}", self.daemon.pid());
        self.daemon.signal(Signal::SIGKILL)?;
        wait_for("its end", || (!self.daemon.is_alive()).then_some(()))?;
        self.refused_before(&format!("su bob -c 'cat {KEY}'"), |stage| {
            println!("    $ enforcer run --bundle /etc/enforcer/bundle.yaml &");
            stage.daemon = Daemon::start(&bundle("block", until), &[])?;
            Ok(())
        })
    }

    fn expiry(&mut self) -> Result<()> {
        let until = Timestamp::now() + LASTS;
        self.heading(&format!("A new bundle: the entitlement ends at {until:.0}"));
        self.daemon.swap(&bundle("block", until))?;
        println!("    it is {:.0}", Timestamp::now());
        self.service(&[READ, (API, Allowed)])?;
        while Timestamp::now() < until {
            thread::sleep(Duration::from_millis(50));
        }
        println!("    it is {:.0}", Timestamp::now());
        self.service(&[("read /etc/payments/stripe.key", Refused("expired"))])?;
        self.service(&[(API, Refused("expired"))])
    }

    fn kill(&mut self, until: Timestamp) -> Result<()> {
        self.heading("Another bundle says `action: kill`: whoever tries is killed in the attempt");
        self.daemon.swap(&bundle("kill", until))?;
        self.service(&[READ, (API, Allowed)])?;
        self.service(&[READ, (ELSEWHERE, Killed)])
    }

    fn governance(&mut self, tomorrow: Timestamp) -> Result<()> {
        self.heading(
            "From here on a governance server says who may: ENT-1042 is given on request only",
        );
        println!("    $ enforcer governance serve /etc/enforcer/fleet &");
        println!("    $ enforcer run --governance https://127.0.0.1:7443 --join-token TOKEN ... &");
        let governance = Governance::start(&on_request(tomorrow), "5m")?;
        // The new daemon takes over from the old one.
        self.daemon.hand_over_to(|| governance.daemon())?;
        self.settled(|stage| stage.may_read(false))?;
        // A moment later its canaries have been tried.
        self.settled(|_| {
            governance
                .ask(&["nodes"])
                .is_ok_and(|it| it.contains("-> enforce"))
        })?;
        self.nodes(&governance)?;
        self.service(&[(READ.0, Refused("no-entitlement"))])?;

        self.heading("Somebody needs it: granted for ten minutes");
        self.say(
            &governance,
            &[
                "grant", "ENT-1042", "--for", "10m", "--reason", "invoices", "--ticket", "GOV-7",
            ],
        )?;
        self.settled(|stage| stage.may_read(true))?;
        self.service(&[READ, (API, Allowed)])?;

        self.heading("It was the wrong ticket: revoked, at once, on all nodes");
        self.say(
            &governance,
            &["revoke", "ENT-1042", "--reason", "granted by mistake"],
        )?;
        self.settled(|stage| stage.may_read(false))?;
        self.service(&[(READ.0, Refused("revoked"))])?;

        self.heading("The server has the evidence");
        let file = governance.evidence()?;
        println!("    $ tail -1 {}", file.display());
        let told = wait_for("the evidence", || {
            let text = fs::read_to_string(&file).ok()?;
            let mut lines = text.lines().rev();
            lines.find_map(|line| {
                let event = Event(serde_json::from_str(line).ok()?);
                (event.reason() == "revoked").then_some(event)
            })
        });
        let result = told.map(|event| println!("      {}", self.paint.quiet(&sentence(&event))));
        self.nodes(&governance)?;
        self.judge(result);
        Ok(())
    }

    /// What the server's operator types, and what is answered.
    fn say(&self, governance: &Governance, words: &[&str]) -> Result<()> {
        println!("    $ enforcer governance {}", words.join(" "));
        print!("      {}", governance.ask(words)?);
        Ok(())
    }

    fn nodes(&self, governance: &Governance) -> Result<()> {
        self.say(governance, &["nodes"])
    }

    /// Waits until that is so.
    fn settled(&self, holds: impl Fn(&Self) -> bool) -> Result<()> {
        wait_for("what governance said", || holds(self).then_some(()))
    }

    /// Whether the service may read its key now, and that is all there is to it.
    fn may_read(&self, expected: bool) -> bool {
        let actor = Actor::new(SERVICE).within(self.unit.name()).user(ALICE);
        let outcome = actor.run([READ.0]);
        outcome.is_ok_and(|it| it.last().is_ok_and(|step| (step.errno == 0) == expected))
    }

    fn end(self) -> Result<bool> {
        println!();
        drop(self.unit);
        self.daemon.stop()?;
        if self.wrong.is_empty() {
            println!("{}", self.paint.good("All came out as told."));
            return Ok(true);
        }
        println!("{}", self.paint.bad("Not all came out as told:"));
        for wrong in &self.wrong {
            println!("  {wrong}");
        }
        Ok(false)
    }
}

/// An event for people.
fn sentence(event: &Event) -> String {
    let text = |pointer: &str| match event.0.pointer(pointer) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(serde_json::Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    let to = event
        .destination()
        .map_or_else(String::new, |to| format!(" to {to}"));
    format!(
        "{} {} {}{to}: {} (pid {}, uid {}, {}; entitlement {}; {}, {})",
        text("/verdict"),
        text("/kind"),
        text("/credential"),
        text("/reason"),
        text("/process/pid"),
        text("/process/uid"),
        text("/process/exe"),
        text("/entitlement"),
        text("/mode/effective"),
        text("/action/taken"),
    )
}
