//! What `top` draws: the state above, decisions in the middle, and what they add up to below.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line as Text, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table};
use serde_json::Value;

use super::Top;

/// Draws all of it.
pub fn all(top: &Top, frame: &mut Frame<'_>) {
    let [head, middle, below, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Min(6),
        Constraint::Percentage(40),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    state(top, frame, head);
    decisions(top, frame, middle);
    let [matrix, holders, losses] = Layout::horizontal([
        Constraint::Percentage(45),
        Constraint::Percentage(30),
        Constraint::Percentage(25),
    ])
    .areas(below);
    self::matrix(top, frame, matrix);
    self::holders(top, frame, holders);
    self::losses(top, frame, losses);
    self::foot(top, frame, foot);
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn colour(outcome: &str) -> Style {
    Style::new().fg(match outcome {
        "allowed" => Color::Green,
        "monitored" => Color::Yellow,
        _ => Color::Red,
    })
}

fn state(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let line = match &top.status {
        Err(reason) => Text::styled(reason.as_str(), colour("denied")),
        Ok(status) => {
            let state = status["state"].as_str().unwrap_or("asking");
            let good = if state.starts_with("enforcing") {
                "allowed"
            } else {
                "denied"
            };
            let mut spans = vec![Span::styled(state, colour(good).patch(bold()))];
            if let Some(issuer) = status["bundle"]["issuer"].as_str() {
                spans.push(format!("   bundle {issuer} {}", status["bundle"]["version"]).into());
            }
            spans.push(
                format!(
                    "   protected files {}",
                    status["files"].as_u64().unwrap_or(0)
                )
                .into(),
            );
            for (outcome, count) in &top.board.outcomes {
                spans.push(Span::styled(
                    format!("   {outcome} {count}"),
                    colour(outcome),
                ));
            }
            Text::from(spans)
        }
    };
    frame.render_widget(
        Paragraph::new(line).block(Block::bordered().title("enforcer")),
        area,
    );
}

fn decisions(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let rows = top.decisions().take(area.height.into()).map(|line| {
        let time = line.time.get(11..19).unwrap_or(&line.time);
        Row::new([
            Cell::new(time),
            Cell::new(line.outcome).style(colour(line.outcome)),
            Cell::new(line.act.as_str()),
            Cell::new(line.who.as_str()),
            Cell::new(line.credential.as_str()),
            Cell::new(line.to.as_str()),
            Cell::new(line.why.as_str()),
        ])
    });
    let widths = [
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Fill(3),
        Constraint::Fill(2),
        Constraint::Fill(2),
        Constraint::Fill(4),
    ];
    let title = match (&top.paused, top.only_denied) {
        (Some(_), _) => "Decisions (paused)",
        (None, true) => "Decisions, denied only",
        (None, false) => "Decisions",
    };
    let head = Row::new(["time", "outcome", "act", "who", "credential", "to", "why"]).style(bold());
    let table = Table::new(rows, widths).header(head).column_spacing(1);
    frame.render_widget(table.block(Block::bordered().title(title)), area);
}

fn matrix(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let rows = top
        .board
        .matrix
        .iter()
        .map(|((workload, credential), cell)| {
            let last = cell.last.get(..19).unwrap_or(&cell.last).replace('T', " ");
            let denied = Cell::new(cell.denied.to_string());
            Row::new([
                Cell::new(workload.as_str()),
                Cell::new(credential.as_str()),
                Cell::new(cell.allowed.to_string()),
                if cell.denied > 0 {
                    denied.style(colour("denied"))
                } else {
                    denied
                },
                Cell::new(last),
            ])
        });
    let widths = [
        Constraint::Fill(2),
        Constraint::Fill(2),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(19),
    ];
    let head = Row::new(["workload", "credential", "allowed", "denied", "last"]).style(bold());
    let table = Table::new(rows, widths).header(head);
    frame.render_widget(
        table.block(Block::bordered().title("Workloads and credentials")),
        area,
    );
}

fn holders(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let rows = top.board.holders.iter().map(|(holder, held)| {
        let held = held
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        Row::new([Cell::new(holder.as_str()), Cell::new(held)])
    });
    let widths = [Constraint::Fill(3), Constraint::Fill(2)];
    let table = Table::new(rows, widths);
    frame.render_widget(
        table.block(Block::bordered().title("Holders, as seen reading")),
        area,
    );
}

fn losses(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let lost =
        top.board.losses.iter().map(|(stage, count)| {
            Text::styled(format!("lost at {stage}: {count}"), colour("denied"))
        });
    let status = top.status.as_ref().ok();
    let sinks = status
        .and_then(|it| it["sinks"].as_array())
        .into_iter()
        .flatten();
    let sinks = sinks.map(|sink| {
        let name = sink["name"].as_str().unwrap_or_default();
        match sink["error"].as_str() {
            Some(error) => Text::styled(
                format!("sink {name}: {} behind: {error}", number(&sink["behind"])),
                colour("denied"),
            ),
            None => Text::raw(format!("sink {name}: {} behind", number(&sink["behind"]))),
        }
    });
    let mut lines: Vec<Text<'_>> = lost.chain(sinks).collect();
    if top.board.losses.is_empty() {
        lines.insert(0, Text::raw("nothing lost"));
    }
    frame.render_widget(
        Paragraph::new(lines).block(Block::bordered().title("Losses and sinks")),
        area,
    );
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn foot(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let text = match (top.typing, top.filter.as_str()) {
        (true, filter) => format!("containing: {filter}_   (enter keeps it, esc drops it)"),
        (false, "") => "q leave   d only denied   / search   space pause".to_owned(),
        (false, filter) => {
            format!("containing {filter}   q leave   d only denied   / search   space pause")
        }
    };
    frame.render_widget(Paragraph::new(text), area);
}
