"""What a run says about its test images: measures, their intervals, predictions, pictures of them."""
