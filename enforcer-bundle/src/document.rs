//! YAML text to trees whose every node knows its line and column.
//!
//! This is the part of YAML a signed document needs: mappings with unique names, lists and scalars of
//! the YAML 1.2 core schema. Anchors, aliases, tags and directives are mistakes, so a value stands where it is used,
//! means what it looks like, and cannot be multiplied; depth, nodes and bytes are bounded.

use std::borrow::Cow;
use std::collections::hash_map::{Entry, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::granit_parser::{
    self, ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, StrInput,
};

use super::mistake::{Place, Position, Report, quoted};

/// How deep block collections may nest, and flow collections in them. A bundle needs 7.
const MAX_DEPTH: usize = 32;
/// How many values and names one file may hold; 100 000 entitlements have about half of it.
const MAX_NODES: usize = 4_000_000;
/// Fields that a mapping mostly has no more of.
const FEW: usize = 16;

/// A value and where it begins. What is written plainly is not copied out of the text: a large bundle has millions.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub position: Position,
    pub value: Value<'a>,
}

#[derive(Debug)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    /// A whole number, as written.
    Integer(Cow<'a, str>),
    /// Any other number, as written.
    Float(Cow<'a, str>),
    Text(Cow<'a, str>),
    List(Vec<Node<'a>>),
    /// In the order of the text, names unique.
    Map(Vec<Field<'a>>),
    /// Something already reported.
    Refused,
}

/// Of JSON, which knows no lines.
impl<'de: 'a, 'a> Deserialize<'de> for Node<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = deserializer.deserialize_any(OfJson)?;
        Ok(Self {
            position: Position::START,
            value,
        })
    }
}

struct OfJson;

impl<'de> Visitor<'de> for OfJson {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Value::Integer(value.to_string().into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Value::Integer(value.to_string().into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Value::Float(value.to_string().into()))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Value::Text(text.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Value::Text(text.to_owned().into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut map = Vec::new();
        while let Some((Node { value, .. }, node)) = fields.next_entry()? {
            let Value::Text(name) = value else {
                return Err(A::Error::custom("a name that is no text"));
            };
            map.push(Field {
                name,
                position: Position::START,
                node,
            });
        }
        Ok(Value::Map(map))
    }
}

/// As JSON. Only for documents without a mistake: their numbers are whole, and fit.
impl From<&Node<'_>> for serde_json::Value {
    fn from(node: &Node<'_>) -> Self {
        match &node.value {
            Value::Null | Value::Refused => Self::Null,
            Value::Bool(value) => (*value).into(),
            Value::Integer(digits) => digits
                .parse::<u64>()
                .map_or_else(|_| (**digits).into(), Self::from),
            Value::Float(text) | Value::Text(text) => (**text).into(),
            Value::List(items) => items.iter().map(Self::from).collect(),
            Value::Map(fields) => (fields.iter())
                .map(|field| (field.name.clone().into_owned(), Self::from(&field.node)))
                .collect(),
        }
    }
}

/// A name in a mapping, and what it stands for.
#[derive(Debug)]
pub(super) struct Field<'a> {
    pub name: Cow<'a, str>,
    pub position: Position,
    pub node: Node<'a>,
}

/// The documents of one file, as far as they could be read.
#[derive(Debug)]
pub(super) struct Documents<'a> {
    pub roots: Vec<Node<'a>>,
    /// Whether that was all of the file.
    pub complete: bool,
}

/// Reads all documents in `text`. Empty ones are left out.
pub(super) fn read<'a>(file: &Arc<Path>, text: &'a str, report: &mut Report) -> Documents<'a> {
    let options = granit_parser::options! {
        disallow_directives: true,
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let parser = Parser::new_from_str_with_options(text, options);
    let mut reader = Reader {
        parser,
        file,
        report,
        nodes: 0,
    };
    let mut roots = Vec::new();
    let complete = match reader.documents(&mut roots) {
        Ok(()) => true,
        Err(Stop(position, message)) => {
            reader.report.add(&Place::in_file(file, position), message);
            false
        }
    };
    Documents { roots, complete }
}

/// Nothing after this place can be read, for this reason.
struct Stop(Position, String);

impl From<ScanError> for Stop {
    fn from(error: ScanError) -> Self {
        let message = match error.kind() {
            ErrorKind::RecursionLimitExceeded => {
                format!("nested too deeply, expected at most {MAX_DEPTH} levels; a bundle needs 7")
            }
            ErrorKind::DirectiveDisallowed => {
                "YAML directives are not supported; remove the line that begins with `%`".to_owned()
            }
            _ => {
                let info = error.info().replace(char::is_control, " ");
                format!("not valid YAML: {info}; nothing after this place was read")
            }
        };
        Self(position_of(*error.marker()), message)
    }
}

fn position_of(marker: granit_parser::Marker) -> Position {
    Position {
        line: marker.line().max(1),
        column: marker.col() + 1,
    }
}

struct Reader<'a, 'r> {
    parser: Parser<'a, StrInput<'a>>,
    file: &'r Arc<Path>,
    report: &'r mut Report,
    nodes: usize,
}

impl<'a> Reader<'a, '_> {
    fn documents(&mut self, roots: &mut Vec<Node<'a>>) -> Result<(), Stop> {
        while let Some(next) = self.parser.next_event() {
            let (event, span) = next?;
            if matches!(
                event,
                Event::StreamStart
                    | Event::StreamEnd
                    | Event::DocumentStart(..)
                    | Event::DocumentEnd
            ) {
                continue;
            }
            let root = self.node(event, span)?;
            if !matches!(root.value, Value::Null) {
                roots.push(root);
            }
        }
        Ok(())
    }

    /// The node that begins with `event`, with all that is in it.
    fn node(&mut self, event: Event<'a>, span: Span) -> Result<Node<'a>, Stop> {
        let position = position_of(span.start);
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            let message = format!(
                "more than {MAX_NODES} values in one file; split the bundle into several files"
            );
            return Err(Stop(position, message));
        }
        let tagged = event.tag().is_some();
        let anchored = matches!(
            event,
            Event::Scalar(_, _, 1.., _)
                | Event::SequenceStart(_, 1.., _)
                | Event::MappingStart(_, 1.., _)
        );
        let value = match event {
            Event::Scalar(text, ScalarStyle::Plain, ..) => resolve(text),
            Event::Scalar(text, ..) => Value::Text(text),
            Event::SequenceStart(..) => self.list()?,
            Event::MappingStart(..) => self.map()?,
            Event::Alias(_) => self.refuse(
                position,
                "YAML aliases are not supported; write the value out here",
            ),
            _ => self.refuse(position, "got YAML this version cannot read"),
        };
        if anchored {
            let value = self.refuse(
                position,
                "YAML anchors are not supported; remove the word with `&`",
            );
            return Ok(Node { position, value });
        }
        if tagged {
            let value = self.refuse(
                position,
                "YAML tags are not supported; remove the word with `!`",
            );
            return Ok(Node { position, value });
        }
        Ok(Node { position, value })
    }

    fn list(&mut self) -> Result<Value<'a>, Stop> {
        let mut items = Vec::new();
        loop {
            match self.inner()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(items)),
                (event, span) => items.push(self.node(event, span)?),
            }
        }
    }

    fn map(&mut self) -> Result<Value<'a>, Stop> {
        let mut fields: Vec<Field<'a>> = Vec::new();
        // Only of those that have many: looking at a few names is quicker.
        let mut seen: HashMap<Cow<'a, str>, usize> = HashMap::new();
        loop {
            let (event, span) = self.inner()?;
            if event == Event::MappingEnd {
                return Ok(Value::Map(fields));
            }
            let name = match &event {
                Event::Scalar(text, ..) => Some(text.clone()),
                _ => None,
            };
            let key = self.node(event, span)?;
            let (event, span) = self.inner()?;
            let node = self.node(event, span)?;
            let Some(name) = name else {
                self.refuse(
                    key.position,
                    "got a name that is not a word; expected `name: value`",
                );
                continue;
            };
            if fields.len() == FEW {
                let first = fields.iter().enumerate();
                seen.extend(first.map(|(at, field)| (field.name.clone(), at)));
            }
            let first = match fields.len() {
                ..FEW => fields.iter().position(|field| field.name == name),
                at => match seen.entry(name.clone()) {
                    Entry::Vacant(free) => {
                        free.insert(at);
                        None
                    }
                    Entry::Occupied(first) => Some(*first.get()),
                },
            };
            match first {
                None => fields.push(Field {
                    name,
                    position: key.position,
                    node,
                }),
                Some(at) => {
                    let first = Place::in_file(self.file, fields[at].position);
                    self.refuse(
                        key.position,
                        format!("{} is already given at {first}; remove one", quoted(&name)),
                    );
                }
            }
        }
    }

    /// The next event of a collection that has begun.
    fn inner(&mut self) -> Result<(Event<'a>, Span), Stop> {
        match self.parser.next_event() {
            Some(next) => Ok(next?),
            None => Err(Stop(
                Position::START,
                "not valid YAML: it ends within a value".to_owned(),
            )),
        }
    }

    fn refuse(&mut self, position: Position, message: impl Into<String>) -> Value<'a> {
        self.report
            .add(&Place::in_file(self.file, position), message);
        Value::Refused
    }
}

/// A plain scalar by the YAML 1.2 core schema.
fn resolve(text: Cow<'_, str>) -> Value<'_> {
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if is_integer(&text) => Value::Integer(text),
        _ if is_float(&text) => Value::Float(text),
        _ => Value::Text(text),
    }
}

fn is_integer(text: &str) -> bool {
    let all = |digits: &str, radix| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
        (Some(digits), _) => all(digits, 16),
        (_, Some(digits)) => all(digits, 8),
        _ => all(text.strip_prefix(['+', '-']).unwrap_or(text), 10),
    }
}

fn is_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    matches!(
        unsigned,
        ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN"
    ) || unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.parse::<f64>().is_ok()
}
