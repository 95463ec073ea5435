//! Which records somebody wants.

use serde_json::Value;

use super::contract::Filter;

/// Lists of those that are wanted, and of those that are not.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters {
    pub allow: Vec<Filter>,
    pub deny: Vec<Filter>,
}

impl Filters {
    /// Whether a record, which is a line of JSON, is wanted. One that cannot be read is.
    pub fn want(&self, line: &str) -> bool {
        if self.allow.is_empty() && self.deny.is_empty() {
            return true;
        }
        let Ok(record) = serde_json::from_str(line) else {
            return true;
        };
        let any = |filters: &[Filter]| filters.iter().any(|filter| holds(filter, &record));
        (self.allow.is_empty() || any(&self.allow)) && !any(&self.deny)
    }
}

fn holds(filter: &Filter, record: &Value) -> bool {
    let pod = &record["instance"]["pod"];
    let fields = [
        (&filter.verdict, &record["verdict"]),
        (&filter.kind, &record["kind"]),
        (&filter.workload, &record["workload"]),
        (&filter.credential, &record["credential"]),
        (&filter.entitlement, &record["entitlement"]),
        (&filter.namespace, &pod["namespace"]),
        (&filter.pod, &pod["name"]),
        (&filter.executable, &record["process"]["exe"]),
        (&filter.reason, &record["reason"]),
    ];
    fields.iter().all(|(wanted, value)| {
        wanted.is_empty() || value.as_str().is_some_and(|value| is_one_of(wanted, value))
    }) && (filter.destination.is_empty() || goes_to(&filter.destination, &record["destination"]))
}

fn is_one_of(wanted: &[String], value: &str) -> bool {
    wanted.iter().any(|it| match it.strip_suffix('*') {
        Some(beginning) => value.starts_with(beginning),
        None => value == it,
    })
}

fn goes_to(wanted: &[String], destination: &Value) -> bool {
    let port = &destination["port"];
    let names = [&destination["address"], &destination["host"]];
    let mut names = names.into_iter().filter_map(Value::as_str);
    names.any(|name| is_one_of(wanted, name) || is_one_of(wanted, &format!("{name}:{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"kind":"reach","verdict":"deny","credential":"stripe","reason":"outside-destination",
        "process":{"exe":"/usr/bin/curl"},"destination":{"address":"203.0.113.9","port":443,"host":"api.example.com"},
        "instance":{"cgroup":"/x","pod":{"namespace":"payments","name":"billing-7"}}}"#;

    fn filter(name: &str, values: &[&str]) -> Filter {
        let values = values.iter().map(ToString::to_string).collect();
        let mut filter = Filter::default();
        match name {
            "verdict" => filter.verdict = values,
            "executable" => filter.executable = values,
            "pod" => filter.pod = values,
            "workload" => filter.workload = values,
            _ => filter.destination = values,
        }
        filter
    }

    #[test]
    fn every_list_of_a_filter_must_have_the_value() {
        let allows = |allow: Vec<Filter>| {
            Filters {
                allow,
                deny: Vec::new(),
            }
            .want(LINE)
        };
        assert!(allows(vec![]));
        assert!(allows(vec![filter("verdict", &["allow", "deny"])]));
        assert!(!allows(vec![filter("verdict", &["allow"])]));
        assert!(!allows(vec![filter("workload", &["billing"])]));
        assert!(allows(vec![filter("pod", &["billing-*"])]));
        for there in [
            "203.0.113.9",
            "203.0.113.9:443",
            "api.example.com:443",
            "api.*",
        ] {
            assert!(allows(vec![filter("destination", &[there])]), "{there}");
        }
        assert!(!allows(vec![filter("destination", &["203.0.113.9:80"])]));
        let both = Filter {
            verdict: vec!["deny".to_owned()],
            executable: vec!["/bin/cat".to_owned()],
            ..Filter::default()
        };
        assert!(!allows(vec![both.clone()]));
        assert!(allows(vec![both, filter("executable", &["/usr/bin/curl"])]));
        let denied = Filters {
            allow: vec![filter("verdict", &["deny"])],
            deny: vec![filter("executable", &["/usr/*"])],
        };
        assert!(!denied.want(LINE));
    }
}
