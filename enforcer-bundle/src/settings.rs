//! A flat document of settings, `name: value`, each with its place: the daemon's configuration.

use std::path::Path;
use std::sync::Arc;

use super::document::{self, Node, Value};
use super::mistake::{Mistake, Mistakes, Place, Position, Report, did_you_mean};

/// A setting as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// The line of the name, from 1.
    pub line: usize,
    /// The column of the name, from 1.
    pub column: usize,
    /// A scalar as one text, a list of scalars as many, a mapping of scalars as `name=value` each.
    pub values: Vec<String>,
}

impl Setting {
    /// What is wrong with it.
    #[must_use]
    pub fn mistake(&self, file: &Path, message: impl Into<String>) -> Mistake {
        Mistake {
            file: file.to_owned(),
            line: self.line,
            column: self.column,
            path: self.name.clone(),
            message: message.into(),
        }
    }

    /// That there is no setting of this name, but these.
    #[must_use]
    pub fn unknown(&self, file: &Path, known: impl IntoIterator<Item = String>) -> Mistake {
        let known: Vec<String> = known.into_iter().collect();
        let mut hint = did_you_mean(&self.name, known.iter().map(String::as_str));
        if hint.is_empty() {
            hint = format!("; there are {}", known.join(", "));
        }
        self.mistake(file, format!("unknown setting{hint}"))
    }
}

/// Reads settings from YAML or JSON. An empty document has none.
///
/// # Errors
/// All [`Mistakes`] found: syntax, a name given twice, and values that are no text, number, `true` or `false`, or
/// lists or mappings of them.
pub fn settings(file: &Path, text: &str) -> Result<Vec<Setting>, Mistakes> {
    let mut report = Report::default();
    let file: Arc<Path> = file.into();
    let documents = document::read(&file, text, &mut report);
    let mut settings = Vec::new();
    for (index, root) in documents.roots.iter().enumerate() {
        let place = |position| Place::in_file(&file, position);
        let Value::Map(fields) = &root.value else {
            report.add(
                &place(root.position),
                "expected settings, like `tier: auto`",
            );
            continue;
        };
        if index > 0 {
            let message = "a second document; put its settings into the first";
            report.add(&place(root.position), message);
        }
        for field in fields {
            let Position { line, column } = field.position;
            match values(&field.node) {
                Some(values) => settings.push(Setting {
                    name: field.name.clone().into_owned(),
                    line,
                    column,
                    values,
                }),
                None => report.add(
                    &Place {
                        path: field.name.clone().into_owned(),
                        ..place(field.position)
                    },
                    "expected a text, a number, true or false, or a list or mapping of those",
                ),
            }
        }
    }
    report.settle(Some(settings))
}

fn values(node: &Node<'_>) -> Option<Vec<String>> {
    match &node.value {
        Value::List(items) => items.iter().map(scalar).collect(),
        Value::Map(fields) => (fields.iter())
            .map(|field| Some(format!("{}={}", field.name, scalar(&field.node)?)))
            .collect(),
        _ => Some(vec![scalar(node)?]),
    }
}

fn scalar(node: &Node<'_>) -> Option<String> {
    match &node.value {
        Value::Bool(value) => Some(value.to_string()),
        Value::Integer(text) | Value::Float(text) | Value::Text(text) => {
            Some(text.clone().into_owned())
        }
        Value::Null | Value::List(_) | Value::Map(_) | Value::Refused => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
        let found = settings(Path::new("f"), text);
        found
            .map(|all| all.into_iter().map(|it| (it.name, it.values)).collect())
            .map_err(|mistakes| mistakes.0.iter().map(|it| format!("{it}\n")).collect())
    }

    #[test]
    fn scalars_lists_and_mappings() {
        let text = "# nothing yet\ntier: auto\nholders: 010\nrequireBundle: true\nlabels: {zone: eu-1, n: 2}\nservers:\n- a\n- b\n";
        let expected = [
            ("tier", vec!["auto"]),
            ("holders", vec!["010"]),
            ("requireBundle", vec!["true"]),
            ("labels", vec!["zone=eu-1", "n=2"]),
            ("servers", vec!["a", "b"]),
        ];
        let expected = expected.map(|(name, values)| {
            let values = values.into_iter().map(str::to_owned).collect();
            (name.to_owned(), values)
        });
        assert_eq!(read(text), Ok(expected.to_vec()));
        assert_eq!(read("# only comments\n"), Ok(vec![]));
    }

    #[test]
    fn mistakes_name_their_line() {
        let text = "tier: lsm\ntier: auto\nnode:\nlabels: [[a]]\n";
        let said = read(text).expect_err("mistakes");
        for place in [
            "f:2:1: \"tier\" is already given at f:1:1",
            "f:3:1: node: ",
            "f:4:1: labels: ",
        ] {
            assert!(said.contains(place), "{said}");
        }
        assert!(read("- a\n").expect_err("a list").starts_with("f:1:1: "));
    }
}
