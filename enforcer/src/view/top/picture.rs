//! The screen as a picture: SVG, so that it stays text.

use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};

/// Width of one character and height of one line, pixels, in the font the picture asks for.
const CELL: (u16, u16) = (8, 18);
/// Space around the text, pixels.
const MARGIN: u16 = 10;

/// Draws the screen.
pub fn of(screen: &Buffer) -> String {
    let area = screen.area;
    let (width, height) = (
        area.width * CELL.0 + 2 * MARGIN,
        area.height * CELL.1 + 2 * MARGIN,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"13\" fill=\"#d0d7de\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"#0d1117\"/>\n"
    );
    for (number, line) in (0_u16..).zip(screen.content.chunks(usize::from(area.width))) {
        let y = MARGIN + number * CELL.1 + 13;
        svg.push_str(&format!(
            "<text x=\"{MARGIN}\" y=\"{y}\" xml:space=\"preserve\">"
        ));
        for run in line.chunk_by(|one, other| style(one) == style(other)) {
            let text: String = run.iter().map(Cell::symbol).collect();
            let text = text.replace('&', "&amp;").replace('<', "&lt;");
            svg.push_str(&format!("<tspan{}>{text}</tspan>", style(&run[0])));
        }
        svg.push_str("</text>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

fn style(cell: &Cell) -> String {
    let fill = match cell.fg {
        Color::Green => " fill=\"#7ee787\"",
        Color::Red => " fill=\"#ff7b72\"",
        Color::Yellow => " fill=\"#e3b341\"",
        _ => "",
    };
    let weight = match cell.modifier.contains(Modifier::BOLD) {
        true => " font-weight=\"bold\"",
        false => "",
    };
    format!("{fill}{weight}")
}
