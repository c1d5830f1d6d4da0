//! How a connection's descriptor is given away, open.

use super::{mark_dirty, Poll};
use crate::record::Completion;
use crate::token::Token;

impl Poll {
    /// Reads nothing more; what is pending is sent first.
    pub(super) fn detach(&mut self, token: Token) -> bool {
        let Some(operator) = self.operators.get_mut(token) else { return false };
        operator.connection.is_leaving = true;
        mark_dirty(&mut self.dirty, operator);
        true
    }

    pub(super) fn give_away(&mut self, token: Token) {
        if let Some(operator) = self.operators.close(token) {
            operator.moving_to.inspect(|target| self.shared.inboxes.came(*target));
            let fd = self.shared.handover.offer(self.index, self.io.release(*operator).descriptor);
            self.io.tell(Completion::Detached { token, descriptor: fd as u32 });
        }
        self.rest_without_connections();
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        self.shared.handover.forget(self.index);
    }
}
