//! What must hold of messages in every state, and what must be seen in some.

use stateright::Property;

use super::Mutant;
use super::moves::Mail;
use super::post::{Post, Sight};

pub const KEPT: &str = "K1 a message that is acknowledged is in the inbox or in the journal, and not in both";
pub const ONCE: &str = "K2 a message is answered once";
pub const NOT_SILENT: &str = "K3 a run with a message in the inbox is not put aside, and not over";
pub const COUNTED: &str = "K4 what is sent and not answered is what is in the inbox";
pub const SAME_ANSWER: &str = "K5 who was told that a message comes too late is not told that it was taken";

pub fn all(mail: &Mail) -> Vec<Property<Mail>> {
    let mut all = vec![
        Property::always(KEPT, |_, post: &Post| {
            let places = |id| usize::from(post.inbox.contains(&id)) + post.answers(id).min(1);
            let known = post.acknowledged.iter().chain(&post.inbox).copied();
            known.into_iter().all(|id| places(id) == 1)
        }),
        Property::always(ONCE, |_, post: &Post| {
            !post.refused_by_index && post.senders.iter().all(|sender| post.answers(sender.id) <= 1)
        }),
        Property::always(NOT_SILENT, |_, post: &Post| {
            let moves = post.run.owner.is_some() || post.run.due;
            post.inbox.is_empty() || (moves && !post.run.over)
        }),
        Property::always(COUNTED, |_, post: &Post| {
            post.run.mail.checked_sub(post.run.told) == Some(post.inbox.len() as u8)
        }),
        Property::always(SAME_ANSWER, |_, post: &Post| post.turned_away.is_disjoint(&post.acknowledged)),
    ];
    if mail.mutant == Mutant::None {
        all.extend([
            Property::sometimes("mail is read with the claim", |_, post| saw(post, Sight::ReadWithTheClaim)),
            Property::sometimes("mail is read by an owner at work", |_, post| saw(post, Sight::ReadUnderWay)),
            Property::sometimes("a run is spoken to as it is put aside", |_, post| {
                saw(post, Sight::SpokenToAsItWasPutAside)
            }),
            Property::sometimes("a run is spoken to as it ends", |_, post| {
                saw(post, Sight::SpokenToAsItEnded)
            }),
            Property::sometimes("a message is sent again after its answer", |_, post| {
                saw(post, Sight::SentAgainAfterItsAnswer)
            }),
            Property::sometimes("a message comes too late", |_, post| saw(post, Sight::TurnedAway)),
            Property::sometimes("the next owner answers", |_, post| saw(post, Sight::HeirAnswers)),
            Property::sometimes("a write is found to be there already", |_, post| {
                saw(post, Sight::WrittenTwice)
            }),
            Property::sometimes("all is said and done", |_, post: &Post| {
                post.run.over && post.inbox.is_empty() && post.acknowledged.len() >= 2
            }),
        ]);
    }
    all
}

fn saw(post: &Post, sight: Sight) -> bool {
    post.seen.contains(&sight)
}
