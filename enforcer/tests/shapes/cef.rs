//! Against the format's own rules: seven fields between bars, then pairs.

pub fn check(line: &str) -> Result<(), String> {
    let rest = line
        .strip_prefix("CEF:0|")
        .ok_or("it does not begin with CEF:0|")?;
    let mut fields = vec![String::new()];
    let mut characters = rest.chars();
    while fields.len() < 7 {
        match characters.next().ok_or("the header has too few fields")? {
            '\\' => match characters.next() {
                Some(it @ ('\\' | '|')) => fields.last_mut().expect("one").push(it),
                other => return Err(format!("header: {other:?} is escaped")),
            },
            '|' => fields.push(String::new()),
            it => fields.last_mut().expect("one").push(it),
        }
    }
    let severity: u8 = fields[5]
        .parse()
        .map_err(|_| format!("severity: {}", fields[5]))?;
    if severity > 10 || fields[3].is_empty() || fields[4].is_empty() {
        return Err(format!("header: {fields:?}"));
    }
    extension(characters.as_str())
}

/// `key=value key=value`, where an `=` in a value is escaped.
fn extension(text: &str) -> Result<(), String> {
    let mut seen: Vec<String> = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or(format!("no pair: {rest}"))?;
        if key.is_empty() || !key.chars().all(|it| it.is_ascii_alphanumeric()) {
            return Err(format!("no key: {key:?}"));
        }
        if seen.iter().any(|it| it == key) {
            return Err(format!("{key} twice"));
        }
        seen.push(key.to_owned());
        let next = next_pair(after)?;
        rest = next.map_or("", |begin| &after[begin..]);
    }
    let has = |name: &str| seen.iter().any(|it| it == name);
    (has("rt") && has("externalId") && has("msg"))
        .then_some(())
        .ok_or(format!("not all there: {seen:?}"))
}

/// Where the key of the next pair begins.
fn next_pair(text: &str) -> Result<Option<usize>, String> {
    let mut escaped = false;
    for (index, it) in text.char_indices() {
        match (escaped, it) {
            (true, '\\' | '=' | 'n' | 'r') => escaped = false,
            (true, _) => return Err(format!("escaped: {it:?}")),
            (false, '\\') => escaped = true,
            (false, '=') => return Ok(text[..index].rfind(' ').map(|it| it + 1)),
            (false, _) => {}
        }
    }
    Ok(None)
}
