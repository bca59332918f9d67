//! Where runs are seen: a terminal on which a tree is drawn again and again, or plain lines.

use std::io::{IsTerminal, Write};

use super::draw::Style;

pub(crate) struct Screen {
    live: bool,
    colour: bool,
    unicode: bool,
    /// Lines that the next drawing takes the place of.
    drawn: usize,
}

/// Colours only on a terminal that has them, and not for those who do not want them (no-color.org).
pub(crate) fn wants_colour() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !unwanted && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

fn speaks_unicode() -> bool {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default();
    let locale = locale.to_uppercase();
    locale.ends_with("UTF-8") || locale.ends_with("UTF8")
}

impl Screen {
    pub(crate) fn new() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let able = std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        Self {
            live: terminal && able,
            colour: terminal && wants_colour(),
            unicode: speaks_unicode(),
            drawn: 0,
        }
    }

    /// Whether it can be drawn on.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    pub(crate) fn style(&self) -> Style {
        let width = if self.live { size().0.max(40) } else { 100 };
        Style { colour: self.colour, unicode: self.unicode, width }
    }

    /// Text that stays. Sentences are wrapped between words.
    pub(crate) fn say(&mut self, text: &str) {
        self.drawn = 0;
        let width = if self.live { size().0.clamp(40, 100) } else { usize::MAX };
        let text: String = text.lines().map(|line| wrapped(line, width) + "\n").collect();
        self.put(&text);
    }

    /// A headline.
    pub(crate) fn title(&mut self, text: &str) {
        let (bold, plain) = if self.colour { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        self.drawn = 0;
        self.put(&format!("\n{bold}{text}{plain}\n"));
    }

    /// Lines that stand still.
    pub(crate) fn lines(&mut self, lines: &[String]) {
        self.drawn = 0;
        self.put(&lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    }

    /// Draws these lines in place of those drawn last. One write a picture, so that nothing flickers.
    pub(crate) fn draw(&mut self, lines: &[String]) {
        let (width, height) = size();
        // What does not fit cannot be drawn over.
        if !self.live || lines.len() >= height || width < 40 {
            return;
        }
        let mut picture = match self.drawn {
            0 => String::new(),
            drawn => format!("\x1b[{drawn}A\r"),
        };
        for line in lines {
            picture += &format!("{line}\x1b[K\n");
        }
        self.drawn = lines.len();
        self.put(&picture);
    }

    /// If nobody looks any more there is nobody to tell, and the runs go on.
    fn put(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// Columns and rows.
fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}

fn wrapped(line: &str, width: usize) -> String {
    let indent: String = line.chars().take_while(|c| *c == ' ').collect();
    let mut out = indent.clone();
    let mut used = indent.chars().count();
    for (n, word) in line.split_whitespace().enumerate() {
        let long = word.chars().count();
        if n > 0 && used + 1 + long > width.saturating_sub(1) {
            out += &format!("\n{indent}");
            used = indent.chars().count();
        } else if n > 0 {
            out.push(' ');
            used += 1;
        }
        out += word;
        used += long;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn a_sentence_is_wrapped_between_words_and_keeps_its_indent() {
        assert_eq!(wrapped("  one two three", 10), "  one two\n  three");
        assert_eq!(wrapped("averylongword that", 8), "averylongword\nthat");
    }
}
