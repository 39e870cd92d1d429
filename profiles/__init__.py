"""What a device may spend: shipped board profiles, detection, metering and enforcement."""
