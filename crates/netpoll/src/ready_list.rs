//! The connections of a poll that have bytes to read, in the order of their turns.

use std::collections::VecDeque;

use crate::operators::Operator;
use crate::token::Token;

/// Edge-triggered epoll tells of bytes once: a connection that was not read to the end stands here until
/// it was, or until it does not want to read.
#[derive(Debug, Default)]
pub(crate) struct ReadyList(VecDeque<Token>);

impl ReadyList {
    /// Puts the connection at the end, if it has something to read, wants to, and is not here yet.
    pub(crate) fn list(&mut self, operator: &mut Operator) {
        let is_wanted = operator.connection.input.ready && operator.may_read();
        if is_wanted && !operator.is_listed {
            operator.is_listed = true;
            self.0.push_back(operator.token);
        }
    }

    /// Takes the first. The caller clears its mark.
    pub(crate) fn next(&mut self) -> Option<Token> {
        self.0.pop_front()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Token> + '_ {
        self.0.iter().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
