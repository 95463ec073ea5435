//! From a tree of nodes to typed values, collecting every mistake on the way.
//!
//! A decoder is a function from a place in the tree to `Option<T>`; `None` means that it has reported why
//! not. Decoders of mappings read all their fields before they give up, so one pass finds everything.

use std::path::Path;
use std::sync::Arc;

use super::document::{Field, Node, Value};
use super::mistake::{Place, Report, closest, did_you_mean, quoted};

/// The fields a mapping may have.
pub(super) struct Shape {
    /// What the mapping is, with its article.
    pub what: &'static str,
    pub fields: &'static [&'static str],
    /// Fields that are designed, and not supported yet.
    pub later: &'static [&'static str],
}

/// A node and the way to it from the root.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    node: &'a Node<'a>,
    trail: Trail<'a>,
}

#[derive(Clone, Copy)]
enum Trail<'a> {
    Root(&'a Arc<Path>),
    Field(&'a Trail<'a>, &'a str),
    Item(&'a Trail<'a>, usize),
}

impl Trail<'_> {
    /// Appends the way from the root, and returns the file.
    fn write(&self, path: &mut String) -> &Arc<Path> {
        match self {
            Self::Root(file) => file,
            Self::Field(parent, name) => {
                let file = parent.write(path);
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
                file
            }
            Self::Item(parent, index) => {
                let file = parent.write(path);
                path.push_str(&format!("[{index}]"));
                file
            }
        }
    }
}

impl<'a> At<'a> {
    pub fn root(file: &'a Arc<Path>, node: &'a Node<'a>) -> Self {
        Self {
            node,
            trail: Trail::Root(file),
        }
    }

    pub fn place(&self) -> Place {
        let mut path = String::new();
        let file = self.trail.write(&mut path).clone();
        Place {
            file,
            position: self.node.position,
            path,
        }
    }

    /// Reports a mistake here; `None` for the caller to return.
    pub fn refuse<T>(&self, report: &mut Report, message: impl Into<String>) -> Option<T> {
        report.add(&self.place(), message);
        None
    }

    pub fn wrong_type<T>(&self, report: &mut Report, expected: &str) -> Option<T> {
        let advice = match &self.node.value {
            Value::Refused => return None,
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) if expected == "text" => {
                "; if it is meant as text, put it in quotes"
            }
            _ => "",
        };
        self.refuse(
            report,
            format!(
                "got {}, expected {expected}{advice}",
                describe(&self.node.value)
            ),
        )
    }

    /// The field of that name, if this is a mapping that has it.
    pub fn lookup(&'a self, name: &'a str) -> Option<At<'a>> {
        let Value::Map(fields) = &self.node.value else {
            return None;
        };
        let field = fields.iter().find(|field| field.name == name)?;
        Some(At {
            node: &field.node,
            trail: Trail::Field(&self.trail, name),
        })
    }

    /// This mapping's fields, after reporting those it should not have.
    pub fn fields(&'a self, report: &mut Report, shape: &Shape) -> Option<Fields<'a>> {
        let Value::Map(fields) = &self.node.value else {
            let fields = listed(shape.fields, "and");
            return self.wrong_type(
                report,
                &format!("{} as a mapping with {fields}", shape.what),
            );
        };
        let mut misspelt = Vec::new();
        let mut strange = false;
        for field in fields
            .iter()
            .filter(|field| !shape.fields.contains(&&*field.name))
        {
            strange = true;
            if report.is_full() {
                report.omit();
                continue;
            }
            let meant = closest(&field.name, shape.fields.iter().copied());
            let place = Place {
                position: field.position,
                ..self.place()
            };
            report.add(&place, unexpected_field(field, shape, meant));
            misspelt.extend(meant);
        }
        Some(Fields {
            at: self,
            misspelt,
            strange,
        })
    }

    /// Every item of this list; `None` if one of them is `None`, after all have been tried.
    pub fn list<T>(
        &self,
        report: &mut Report,
        what: &str,
        mut item: impl FnMut(At<'_>, &mut Report) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Value::List(nodes) = &self.node.value else {
            return self.wrong_type(report, &format!("a list of {what}"));
        };
        let mut items = Some(Vec::with_capacity(nodes.len()));
        for (index, node) in nodes.iter().enumerate() {
            let decoded = item(
                At {
                    node,
                    trail: Trail::Item(&self.trail, index),
                },
                report,
            );
            items = items.zip(decoded).map(|(mut items, decoded)| {
                items.push(decoded);
                items
            });
        }
        items
    }

    /// The names of this mapping with what `read` makes of their texts, whatever the names are.
    pub fn pairs<T>(
        &self,
        report: &mut Report,
        what: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<(String, T)>> {
        let Value::Map(fields) = &self.node.value else {
            return self.wrong_type(report, &format!("{what} as a mapping, like {{zone: eu-1}}"));
        };
        let mut pairs = Some(Vec::with_capacity(fields.len()));
        for field in fields {
            let at = At {
                node: &field.node,
                trail: Trail::Field(&self.trail, &field.name),
            };
            let value = at.parsed(report, &read);
            pairs = pairs.zip(value).map(|(mut pairs, value)| {
                pairs.push((field.name.clone().into_owned(), value));
                pairs
            });
        }
        pairs
    }

    /// Text, as it is written.
    pub fn text(&self, report: &mut Report) -> Option<&'a str> {
        self.as_text().or_else(|| self.wrong_type(report, "text"))
    }

    /// Text that `read` makes something of. What `read` says on failure is the mistake's message.
    pub fn parsed<T>(
        &self,
        report: &mut Report,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        match read(self.text(report)?) {
            Ok(value) => Some(value),
            Err(message) => self.refuse(report, message),
        }
    }

    pub fn flag(&self, report: &mut Report) -> Option<bool> {
        match &self.node.value {
            Value::Bool(value) => Some(*value),
            _ => self.wrong_type(report, "true or false"),
        }
    }

    /// A decimal number from `min` to `max`.
    pub fn number(&self, report: &mut Report, what: &str, min: u64, max: u64) -> Option<u64> {
        let expected = || format!("{what} from {min} to {max}");
        let digits = match &self.node.value {
            Value::Integer(digits) => digits,
            Value::Text(text) if text.parse::<u64>().is_ok() => {
                let got = quoted(text);
                let message = format!(
                    "got {got}, expected {}; write it without quotes",
                    expected()
                );
                return self.refuse(report, message);
            }
            _ => return self.wrong_type(report, &expected()),
        };
        let canonical = digits == "0" || !digits.starts_with(['0', '+']);
        match digits
            .parse()
            .ok()
            .filter(|number| canonical && (min..=max).contains(number))
        {
            Some(number) => Some(number),
            None => self.refuse(
                report,
                format!(
                    "got {}, expected {} in decimal",
                    describe(&self.node.value),
                    expected()
                ),
            ),
        }
    }

    /// One of the words in `choices`; the words in `later` are designed, and not supported yet.
    pub fn choice<T: Copy>(
        &self,
        report: &mut Report,
        choices: &[(&str, T)],
        later: &[&str],
    ) -> Option<T> {
        let got = self.text(report)?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == got) {
            return Some(*value);
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let expected = one_of(&words);
        let hint = if words.len() > 1 {
            did_you_mean(got, words)
        } else {
            String::new()
        };
        if later.contains(&got) {
            return self.refuse(
                report,
                format!("`{got}` is not supported by this version yet; use {expected}"),
            );
        }
        self.refuse(
            report,
            format!("got {}, expected {expected}{hint}", quoted(got)),
        )
    }

    /// The text, if this is text.
    pub fn as_text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }
}

/// The fields of one mapping.
pub(super) struct Fields<'a> {
    at: &'a At<'a>,
    /// Fields that probably are there under a wrong name: their absence is no second mistake.
    misspelt: Vec<&'static str>,
    strange: bool,
}

impl<'a> Fields<'a> {
    pub fn get(&self, name: &'static str) -> Option<At<'a>> {
        self.at.lookup(name)
    }

    pub fn place(&self) -> Place {
        self.at.place()
    }

    /// Whether there are unknown fields, so that nothing can be said about what is missing.
    pub fn has_strangers(&self) -> bool {
        self.strange
    }

    pub fn required<T>(
        &self,
        report: &mut Report,
        name: &'static str,
        decode: impl FnOnce(At<'a>, &mut Report) -> Option<T>,
    ) -> Option<T> {
        match self.get(name) {
            Some(at) => decode(at, report),
            None if self.misspelt.contains(&name) => None,
            None => self.at.refuse(
                report,
                format!("the field `{name}` is missing; add it here"),
            ),
        }
    }

    /// `Some(None)` if the field is absent, `None` if it is wrong.
    pub fn optional<T>(
        &self,
        report: &mut Report,
        name: &'static str,
        decode: impl FnOnce(At<'a>, &mut Report) -> Option<T>,
    ) -> Option<Option<T>> {
        self.get(name)
            .map_or(Some(None), |at| decode(at, report).map(Some))
    }

    /// The one field of `names` that is there.
    pub fn exactly_one(
        &self,
        report: &mut Report,
        names: &[&'static str],
    ) -> Option<(&'static str, At<'a>)> {
        let mut present = names
            .iter()
            .filter_map(|name| Some((*name, self.get(name)?)));
        match (present.next(), present.next()) {
            (Some(one), None) => Some(one),
            (Some((first, _)), Some((second, _))) => {
                let advice = format!(
                    "got both `{first}` and `{second}`, expected exactly one of {}",
                    one_of(names)
                );
                self.at.refuse(report, format!("{advice}; write two items"))
            }
            _ if self.strange => None,
            _ => self.at.refuse(
                report,
                format!("expected exactly one of {} here, got none", one_of(names)),
            ),
        }
    }
}

fn unexpected_field(field: &Field<'_>, shape: &Shape, meant: Option<&str>) -> String {
    let name = &*field.name;
    if shape.later.contains(&name) {
        return format!("`{name}` is not supported by this version yet; remove it");
    }
    let hint = match meant {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("{} has {}", shape.what, listed(shape.fields, "and")),
    };
    format!("unknown field {}; {hint}", quoted(name))
}

fn one_of(words: &[&str]) -> String {
    listed(words, "or")
}

/// `a`, `b` and `c`
fn listed(words: &[&str], and: &str) -> String {
    let marked: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match marked.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} {and} {last}", first.join(", ")),
    }
}

fn describe(value: &Value<'_>) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Integer(text) | Value::Float(text) => {
            format!("the number {}", quoted(text).trim_matches('"'))
        }
        Value::Text(text) => quoted(text),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a mapping".to_owned(),
        Value::Refused => "a mistake".to_owned(),
    }
}
