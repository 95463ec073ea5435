//! What a scan found, for people.

use std::fmt::Write as _;

use jiff::{SpanRound, Timestamp, Unit};

use super::{Found, Report};

/// A block for each credential, and a last line with their number.
#[must_use]
pub fn text(report: &Report, now: Timestamp) -> String {
    let mut text = String::new();
    for found in &report.credentials {
        // Writing to a string does not fail.
        let _ = block(&mut text, found, now);
    }
    let _ = writeln!(text, "{} known credentials", report.credentials.len());
    for reason in &report.incomplete {
        let _ = writeln!(text, "not complete: {reason}");
    }
    text
}

fn block(text: &mut String, found: &Found, now: Timestamp) -> std::fmt::Result {
    let Some((first, others)) = found.places.split_first() else {
        return Ok(());
    };
    let kind = serde_json::to_value(found.kind).unwrap_or_default();
    let kind = kind.as_str().unwrap_or_default();
    writeln!(text, "{first}")?;
    let mut about = vec![format!("{} ({kind})", found.catalogue)];
    about.push(if found.group.is_empty() {
        found.owner.clone()
    } else {
        format!("{}:{} {}", found.owner, found.group, found.mode)
    });
    about.extend(found.modified.map(|then| format!("{} old", age(then, now))));
    writeln!(text, "    {}", about.join(", "))?;
    for item in &found.items {
        let id = item.id.as_deref().unwrap_or("of unknown id");
        let ends = item.expires.map(|at| {
            let word = if at <= now { "expired" } else { "good until" };
            format!(", {word} {at:.0}")
        });
        writeln!(text, "    {} {id}{}", item.what, ends.unwrap_or_default())?;
    }
    let acl = if found.acl {
        ", others by its access control list"
    } else {
        ""
    };
    writeln!(text, "    may be read by {}{acl}", found.readers.join(", "))?;
    for place in others {
        writeln!(text, "    also {place}")?;
    }
    for place in &found.shared_with {
        writeln!(text, "    shared with {place}")?;
    }
    if let Some(reason) = &found.unread {
        writeln!(text, "    not looked into: {reason}")?;
    }
    Ok(())
}

/// `3d`, `5h`, `12m`: the time since, in the largest unit that it fills.
fn age(then: Timestamp, now: Timestamp) -> String {
    let round = SpanRound::new().largest(Unit::Hour).smallest(Unit::Minute);
    let span = now.since(then).and_then(|span| span.round(round));
    match span.map(|span| (span.get_hours(), span.get_minutes())) {
        Ok((hours @ 48.., _)) => format!("{}d", hours / 24),
        Ok((hours @ 1.., _)) => format!("{hours}h"),
        Ok((_, minutes)) => format!("{}m", minutes.max(0)),
        Err(_) => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_in_one_unit() {
        let then = Timestamp::from_second(1_000_000).expect("in range");
        for (seconds, expected) in [
            (-5, "0m"),
            (59 * 60, "59m"),
            (3_600, "1h"),
            (47 * 3_600, "47h"),
            (48 * 3_600, "2d"),
            (400 * 86_400, "400d"),
        ] {
            let now = Timestamp::from_second(1_000_000 + seconds).expect("in range");
            assert_eq!(age(then, now), expected);
        }
    }
}
