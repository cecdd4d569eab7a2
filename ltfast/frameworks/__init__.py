"""Adapters to the trainers of other packages. A trainer that is not listed takes the losses as they are.

| name | for |
| --- | --- |
| ``compute_loss`` | the argument ``compute_loss_func`` of Hugging Face's ``Trainer`` |
"""

from ltfast.frameworks.hugging_face import compute_loss

__all__ = ["compute_loss"]
