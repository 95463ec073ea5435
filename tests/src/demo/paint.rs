//! Colours, where somebody sees them.

/// Paints text, or leaves it as it is.
#[derive(Clone, Copy)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// Colours if `on`.
    pub fn new(on: bool) -> Self {
        Self { on }
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.on {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A heading.
    pub fn heading(self, text: &str) -> String {
        self.with("1", text)
    }

    /// What was allowed, or came out well.
    pub fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    /// What was refused, or came out badly.
    pub fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    /// What is only for the record.
    pub fn quiet(self, text: &str) -> String {
        self.with("2", text)
    }
}
