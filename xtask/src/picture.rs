//! A picture of a terminal's text: SVG, so that it stays text.

/// Width of one character and height of one line, pixels, in the font the picture asks for.
const CELL: (usize, usize) = (8, 18);
/// Space around the text, pixels.
const MARGIN: usize = 16;

/// Draws the text. Lines are coloured by what they begin with: `$` for commands, words for outcomes.
pub fn of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let columns = lines.iter().map(|line| line.chars().count()).max();
    let width = columns.unwrap_or(0) * CELL.0 + 2 * MARGIN;
    let height = lines.len() * CELL.1 + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"ui-monospace, Menlo, Consolas, monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#15191f\"/>\n"
    );
    for (number, line) in lines.iter().enumerate() {
        let y = MARGIN + number * CELL.1 + 13;
        svg.push_str(&format!(
            "<text x=\"{MARGIN}\" y=\"{y}\" fill=\"{}\" xml:space=\"preserve\">{}</text>\n",
            colour(line),
            escape(line)
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

fn colour(line: &str) -> &'static str {
    let text = line.trim_start();
    if text.starts_with('$') {
        "#e6edf3"
    } else if text.contains("EPERM") || text.contains("deny") || text.contains("SIGKILL") {
        "#ff9580"
    } else if text.contains("allow") {
        "#8ddb8c"
    } else if line.starts_with(' ') {
        "#9da7b3"
    } else {
        "#79c0ff"
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            character if character.is_control() => {}
            character => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_svg_cannot_hold_is_escaped() {
        let svg = of("a < b & c\u{1b}\n$ ls");
        assert!(svg.contains(">a &lt; b &amp; c</text>"));
        assert_eq!(svg.matches("<text").count(), 2);
    }
}
