//! Where calls stand in the traces of those who asked for them, after W3C Trace Context.
//!
//! A run lasts for days and moves from node to node, so it is no span: each attempt is one, below the request that
//! submitted the run, whose place the journal keeps ([`Sender::trace`](crate::Sender)). Where nobody has installed a
//! tracer, nothing is measured, and what the caller has sent is handed on as it came.
//!
//! Spans say what is written here and nothing else. No input, output or message of an error gets into them: whoever reads
//! traces need not be allowed to read runs.

use backstay_machine::{ActivityError, Direction};
use opentelemetry::trace::{
    Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
};
use opentelemetry::{Context as Place, KeyValue, global};

use crate::activity::Context;

/// The place that a `traceparent` names; nothing if it is none.
pub fn parse(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace) = (hex(parts.next()?, 2)?, hex(parts.next()?, 32)?);
    let (span, flags) = (hex(parts.next()?, 16)?, hex(parts.next()?, 2)?);
    // Later versions may say more; this one may not, and 255 is none.
    if version == 255 || (version == 0 && parts.next().is_some()) {
        return None;
    }
    let span = SpanId::from_bytes(u64::try_from(span).ok()?.to_be_bytes());
    let sampled = TraceFlags::default().with_sampled(flags & 1 == 1);
    let place =
        SpanContext::new(TraceId::from_bytes(trace.to_be_bytes()), span, sampled, true, TraceState::NONE);
    place.is_valid().then_some(place)
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let fits = text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if fits { u128::from_str_radix(text, 16).ok() } else { None }
}

/// A place as a `traceparent`; nothing if it is none.
pub fn traceparent(place: &SpanContext) -> Option<String> {
    let (trace, span, flags) = (place.trace_id(), place.span_id(), place.trace_flags().to_u8());
    place.is_valid().then(|| format!("00-{trace}-{span}-{flags:02x}"))
}

/// What lies below that place.
pub fn below(place: Option<SpanContext>) -> Place {
    place.map_or_else(Place::new, |place| Place::new().with_remote_span_context(place))
}

/// A call of an activity, while it goes on.
pub(crate) struct Call(global::BoxedSpan, bool);

impl Call {
    /// `what` is done: an attempt or a probe.
    pub(crate) fn begin(what: &'static str, context: &Context, activity: &str, node: &str) -> Self {
        let parent = context.sender.as_ref().and_then(|sender| parse(sender.trace.as_deref()?));
        let undoes = context.direction == Direction::Undo;
        let name = match (what, undoes) {
            ("probe", _) => format!("probe {activity}"),
            (_, true) => format!("undo {activity}"),
            (_, false) => activity.to_owned(),
        };
        let tracer = global::tracer("backstay-engine");
        let builder = tracer.span_builder(name).with_kind(SpanKind::Internal);
        let mut span = tracer.build_with_context(builder, &below(parent));
        if span.is_recording() {
            span.set_attributes([
                KeyValue::new("backstay.run", context.run.to_string()),
                KeyValue::new("backstay.step", context.step.to_string()),
                KeyValue::new("backstay.attempt", i64::from(context.attempt)),
                KeyValue::new("backstay.generation", i64::from(context.generation)),
                KeyValue::new("backstay.direction", if undoes { "undo" } else { "forward" }),
                KeyValue::new("backstay.activity", activity.to_owned()),
                KeyValue::new("backstay.node", node.to_owned()),
            ]);
        }
        Self(span, false)
    }

    /// What the activity passes on to those it calls.
    pub(crate) fn traceparent(&self) -> Option<String> {
        traceparent(self.0.span_context())
    }

    /// It came to this.
    pub(crate) fn ended<T>(mut self, result: &Result<T, ActivityError>) {
        match result {
            Ok(_) => self.outcome("succeeded"),
            Err(error) => {
                self.outcome("failed");
                self.0.set_attribute(KeyValue::new("backstay.code", error.code.clone()));
                self.0.set_status(Status::error(error.code.clone()));
            }
        }
    }

    fn outcome(&mut self, outcome: &'static str) {
        self.1 = true;
        self.0.set_attribute(KeyValue::new("backstay.outcome", outcome));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Dropped on the way: the node gave it up, and what it came to is not known.
        if !self.1 {
            self.outcome("given up");
        }
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use super::{parse, traceparent};

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_place_is_written_as_it_was_read() {
        assert_eq!(traceparent(&parse(TRACE).unwrap()).as_deref(), Some(TRACE));
        let unsampled = TRACE.replace("-01", "-00");
        assert_eq!(traceparent(&parse(&unsampled).unwrap()), Some(unsampled));
        // A later version may say more, and other flags: what this one knows of them is handed on.
        let later = TRACE.replace("00-0", "01-0").replace("-01", "-03-more");
        assert_eq!(traceparent(&parse(&later).unwrap()).as_deref(), Some(TRACE));
    }

    #[test]
    fn what_is_no_place_is_not_handed_on() {
        let wrong = [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ];
        for text in wrong {
            assert!(parse(text).is_none(), "{text}");
        }
    }
}
