//! What callers may do: rights, and the roles that have them.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One thing that somebody may do. An operation needs exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Look at runs, workflows, nodes and figures.
    View,
    /// Submit runs of workflows that are there.
    Submit,
    /// Submit plans of one's own.
    Define,
    /// Send signals to runs.
    Signal,
    /// Try a step again as it is, pause a run, let it go on.
    Steer,
    /// Put one's own word in place of a step: another input, an output, evidence.
    Edit,
    /// Roll runs back, or undo one step.
    RollBack,
    /// Make runs final.
    Commit,
    /// Close runs with a list of what is left.
    Close,
    /// Say yes or no where a plan asks for it.
    Approve,
    /// Let a step start without the proof that it requires.
    Override,
    /// Limit pools, declare outages.
    Pools,
    /// Principals, tokens, secrets, the audit trail.
    Admin,
}

impl Right {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Right::View => "view",
            Right::Submit => "submit",
            Right::Define => "define",
            Right::Signal => "signal",
            Right::Steer => "steer",
            Right::Edit => "edit",
            Right::RollBack => "roll_back",
            Right::Commit => "commit",
            Right::Close => "close",
            Right::Approve => "approve",
            Right::Override => "override",
            Right::Pools => "pools",
            Right::Admin => "admin",
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name for rights that go together. Nobody gets a right in any other way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Submits runs and steers them.
    Operator,
    /// Submits plans of their own.
    Author,
    /// Says yes or no where a plan asks for it.
    Approver,
    /// May let a step start without its proof. No other role may, and none comes with it by itself.
    Overrider,
    /// Manages who may do what.
    Admin,
}

impl Role {
    /// All there are.
    pub const ALL: [Role; 6] =
        [Role::Viewer, Role::Operator, Role::Author, Role::Approver, Role::Overrider, Role::Admin];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Author => "author",
            Role::Approver => "approver",
            Role::Overrider => "overrider",
            Role::Admin => "admin",
        }
    }

    /// The role of that name. A name that this release does not know gives no right.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// What it may do. Everybody may look.
    pub fn rights(self) -> &'static [Right] {
        match self {
            Role::Viewer => &[Right::View],
            Role::Operator => &[
                Right::View,
                Right::Submit,
                Right::Signal,
                Right::Steer,
                Right::Edit,
                Right::RollBack,
                Right::Commit,
                Right::Close,
                Right::Pools,
            ],
            Role::Author => &[Right::View, Right::Submit, Right::Define],
            Role::Approver => &[Right::View, Right::Approve],
            Role::Overrider => &[Right::View, Right::Override],
            Role::Admin => &[Right::View, Right::Pools, Right::Admin],
        }
    }
}
