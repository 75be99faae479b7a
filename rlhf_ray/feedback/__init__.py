"""What people and judges say of responses: kept, corrected, exchanged and measured."""
