"""Object detection and instance segmentation with Faster and Mask R-CNN."""
