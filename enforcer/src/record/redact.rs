//! Command lines without the secrets in them.

use std::sync::LazyLock;

use regex::Regex;

/// What stands in the place of a secret.
pub const REDACTED: &str = "[redacted]";

/// What a secret looks like, or what stands before one: the group `secret` is replaced, or all of it.
static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    [
        // Authorization: Bearer X, Basic X
        r"(?i)\b(?:bearer|basic|token|digest)\s+(?P<secret>[\w.~+/=-]{8,})",
        // --password=X, -DdbPassword=X, API_TOKEN=X, "client_secret": "X"
        r#"(?i)[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|apikey|access[_-]?key|private[_-]?key|credential|auth)[\w.-]*["']?\s*[=:]\s*["']?(?P<secret>[^\s"',;&]+)"#,
        // scheme://user:X@host
        r"://[^/\s:@]*:(?P<secret>[^/\s@]+)@",
        // Of known forms.
        r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
        r"\bgh[pousr]_\w{20,}\b|\bgithub_pat_\w{20,}\b|\bglpat-[\w-]{20,}",
        r"\bxox[abeprs]-[\w-]{10,}",
        r"\b[sr]k_(?:live|test)_\w{10,}\b",
        r"\bAIza[\w-]{35}\b",
        r"\bhv[sbr]\.[\w-]{20,}",
        r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
        r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*",
    ]
    .iter()
    .filter_map(|it| Regex::new(it).ok())
    .collect()
});

/// A flag whose value is the next word.
static FLAG: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)^--?[\w.-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|credential)s?$").ok()
});

/// The words of a command line; what looks like a secret, or is the value of an option for one, is replaced.
pub fn command_line(words: Vec<String>) -> Vec<String> {
    let mut is_secret = false;
    let redacted = words.into_iter().map(|word| {
        let was_announced = std::mem::take(&mut is_secret) && !word.starts_with('-');
        is_secret = (FLAG.as_ref()).is_some_and(|flag| flag.is_match(&word));
        if was_announced {
            REDACTED.to_owned()
        } else {
            text(&word)
        }
    });
    redacted.collect()
}

fn text(word: &str) -> String {
    let mut word = word.to_owned();
    for pattern in PATTERNS.iter() {
        let mut ranges: Vec<_> = pattern
            .captures_iter(&word)
            .filter_map(|found| found.name("secret").or_else(|| found.get(0)))
            .map(|found| found.range())
            .collect();
        while let Some(range) = ranges.pop() {
            word.replace_range(range, REDACTED);
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_stay() {
        assert_eq!(PATTERNS.len(), 11, "one of them is no expression");
        assert!(FLAG.is_some());
        for (line, expected) in [
            (
                "mysql|--password=hunter2|db",
                "mysql|--password=[redacted]|db",
            ),
            (
                "mysql|--password|hunter2|db",
                "mysql|--password|[redacted]|db",
            ),
            ("env|API_TOKEN=abc|run", "env|API_TOKEN=[redacted]|run"),
            (
                "curl|-H|Authorization: Bearer abcdef123456|https://h/",
                "curl|-H|Authorization: [redacted] [redacted]|https://h/",
            ),
            (
                "curl|-H|X-Vault-Token: hvs.short",
                "curl|-H|X-Vault-Token: [redacted]",
            ),
            (
                "psql|postgres://u:p4ss@db:5432/x",
                "psql|postgres://u:[redacted]@db:5432/x",
            ),
            ("x|AKIAABCDEFGHIJKLMNOP", "x|[redacted]"),
            ("x|ghp_abcdefghijklmnopqrstuvwxyz", "x|[redacted]"),
            (
                "curl|-d|{\"client_secret\": \"s3cr3t\", \"a\": 1}",
                "curl|-d|{\"client_secret\": \"[redacted]\", \"a\": 1}",
            ),
            // The harmless twins.
            (
                "cat|/etc/payments/stripe.key",
                "cat|/etc/payments/stripe.key",
            ),
            (
                "curl|https://api.example.com/v1?q=a",
                "curl|https://api.example.com/v1?q=a",
            ),
            (
                "ssh|-i|/root/.ssh/id_ed25519|host",
                "ssh|-i|/root/.ssh/id_ed25519|host",
            ),
            (
                "tool|--token-file|/run/token",
                "tool|--token-file|/run/token",
            ),
        ] {
            let words = line.split('|').map(str::to_owned).collect();
            assert_eq!(command_line(words).join("|"), expected);
        }
    }
}
