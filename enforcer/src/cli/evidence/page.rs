//! A report as one page of HTML: no scripts, nothing from elsewhere, and everything that was read is escaped.

use jiff::Timestamp;
use serde_json::Value;

use super::{list, seen, text};

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}\
h1{font-size:1.6rem}h2{margin-top:2.2rem;border-bottom:1px solid #ccc}h3{margin-bottom:.2rem}\
table{border-collapse:collapse;width:100%;margin:.6rem 0}td,th{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid #ddd}\
pre{background:#f4f4f4;padding:.6rem;overflow-x:auto}.high{color:#a40000;font-weight:600}.medium{color:#8a5000;font-weight:600}.low{color:#444}\
.deny{color:#a40000}.small{color:#555;font-size:.9em}\
@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}pre{background:#242424}.high,.deny{color:#ff8080}.medium{color:#ffc060}.low,.small{color:#aaa}td,th,h2{border-color:#444}}";

/// The page.
pub fn page(status: &Value, usage: &Value, found: &Value, now: Timestamp) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>enforcer: report of {0}</title><style>{STYLE}</style></head><body>\n\
         <h1>Credentials in use</h1>\n<p class=\"small\">{0}</p>\n",
        escaped(&now.to_string())
    );
    of_node(&mut html, status, usage);
    of_findings(&mut html, found);
    for (title, kind) in [
        ("Entitlements", "entitlements"),
        ("Credentials", "credentials"),
    ] {
        html.push_str(&format!("<h2>{title}</h2>\n"));
        for of in list(&usage[kind]) {
            of_one(&mut html, of);
        }
    }
    html.push_str("</body></html>\n");
    html
}

fn of_node(html: &mut String, status: &Value, usage: &Value) {
    let coverage = &usage["coverage"];
    let bundle = &status["bundle"];
    let rows = [
        ("State", text(&status["state"]).to_owned()),
        (
            "Bundle",
            format!("{}, version {}", text(&bundle["issuer"]), bundle["version"]),
        ),
        (
            "Uses are seen",
            format!(
                "since {}, until {}",
                text(&coverage["since"]),
                text(&coverage["until"])
            ),
        ),
    ];
    html.push_str("<table>\n");
    for (name, value) in rows {
        row(html, &[name.to_owned(), value]);
    }
    for gap in list(&coverage["gaps"]) {
        let span = format!("from {} to {}", text(&gap["from"]), text(&gap["to"]));
        row(
            html,
            &[
                "Not seen".to_owned(),
                format!("{span}: {}", text(&gap["reason"])),
            ],
        );
    }
    for left in list(&status["notCovered"]) {
        row(html, &["Not covered".to_owned(), text(left).to_owned()]);
    }
    html.push_str("</table>\n");
}

fn of_findings(html: &mut String, found: &Value) {
    html.push_str("<h2>Findings</h2>\n");
    if let Some(undecided) = found["undecided"].as_str() {
        html.push_str(&format!("<p>{}</p>\n", escaped(undecided)));
    }
    if list(&found["findings"]).is_empty() {
        html.push_str("<p>None.</p>\n");
    }
    for it in list(&found["findings"]) {
        let severity = text(&it["severity"]);
        html.push_str(&format!(
            "<h3><span class=\"{0}\">{0}</span> {1}</h3>\n<p>{2} <span class=\"small\">OWASP {3}, NIST CSF 2.0 {4}</span></p>\n",
            escaped(severity),
            escaped(text(&it["kind"])),
            escaped(text(&it["message"])),
            escaped(text(&it["owasp"][0])),
            escaped(text(&it["nist"][0]))
        ));
        html.push_str("<ul>\n");
        for line in list(&it["evidence"]) {
            html.push_str(&format!("<li>{}</li>\n", escaped(text(line))));
        }
        html.push_str("</ul>\n");
        if let Some(remedy) = it["remedy"].as_str() {
            html.push_str(&format!("<pre>{}</pre>\n", escaped(remedy)));
        }
    }
}

fn of_one(html: &mut String, of: &Value) {
    let gone = if of["inForce"] == true {
        ""
    } else {
        " (not in the bundle in force)"
    };
    html.push_str(&format!(
        "<h3>{}{gone}</h3>\n<p>Used {}",
        escaped(text(&of["id"])),
        escaped(&seen(&of["used"]))
    ));
    if of["denied"]["count"].is_u64() {
        html.push_str(&format!(
            "; <span class=\"deny\">denied {}</span>",
            escaped(&seen(&of["denied"]))
        ));
    }
    html.push_str(".</p>\n");
    let about: Vec<String> = [
        "workload",
        "credential",
        "owner",
        "approver",
        "ticket",
        "reviewBy",
    ]
    .iter()
    .filter_map(|name| Some(format!("{name} {}", of[*name].as_str()?)))
    .collect();
    if !about.is_empty() {
        html.push_str(&format!(
            "<p class=\"small\">{}</p>\n",
            escaped(&about.join(", "))
        ));
    }
    html.push_str("<table>\n");
    for by in list(&of["by"]) {
        let who = format!(
            "{} {} (uid {}, {})",
            text(&by["workload"]),
            text(&by["executable"]),
            by["uid"],
            text(&by["place"])
        );
        row(html, &[text(&by["verdict"]).to_owned(), who, seen(by)]);
    }
    for to in list(&of["destinations"]) {
        let place = format!(
            "to {} {} port {} {}",
            to["host"].as_str().unwrap_or_default(),
            text(&to["address"]),
            to["port"],
            text(&to["protocol"])
        );
        row(html, &[text(&to["verdict"]).to_owned(), place, seen(to)]);
    }
    html.push_str("</table>\n");
}

fn row(html: &mut String, cells: &[String]) {
    html.push_str("<tr>");
    for cell in cells {
        html.push_str(&format!("<td>{}</td>", escaped(cell)));
    }
    html.push_str("</tr>\n");
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Every text that comes from somewhere, wherever it stands.
    #[test]
    fn whatever_was_read_is_escaped() {
        let bad = "<script src=//evil.example>'\"&";
        let by = json!({"verdict": bad, "workload": bad, "executable": bad, "uid": bad, "place": bad, "count": 1, "first": bad, "last": bad});
        let to = json!({"verdict": bad, "host": bad, "address": bad, "port": bad, "protocol": bad, "count": 2, "first": bad, "last": bad});
        let of = json!({"id": bad, "inForce": false, "used": {"count": 3, "first": bad, "last": bad}, "denied": {"count": 1, "last": bad},
            "workload": bad, "credential": bad, "owner": bad, "approver": bad, "ticket": bad, "reviewBy": bad, "by": [by], "destinations": [to]});
        let usage = json!({"coverage": {"since": bad, "until": bad, "gaps": [{"from": bad, "to": bad, "reason": bad}]}, "entitlements": [of.clone()], "credentials": [of]});
        let status =
            json!({"state": bad, "bundle": {"issuer": bad, "version": bad}, "notCovered": [bad]});
        let found = json!({"undecided": bad, "findings": [{"severity": bad, "kind": bad, "message": bad, "owasp": [bad], "nist": [bad], "evidence": [bad], "remedy": bad}]});
        let page = page(&status, &usage, &found, Timestamp::UNIX_EPOCH);
        assert!(!page.contains("<script"), "{page}");
        assert!(!page.contains("example>'"), "{page}");
        assert!(
            page.matches("&lt;script src=//evil.example&gt;&#39;")
                .count()
                > 30,
            "{page}"
        );
        // Nothing is fetched.
        for word in ["<link", "<img", "url(", "@import", "href="] {
            assert!(!page.contains(word), "{word}");
        }
    }
}
