"""What the notebooks need: checks of exercises, viewers, figures, copies for students."""
